"""A clusters folder is prepared whole or not at all, once for each data and recipe."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from clip_negatives import Columns
from clip_negatives.dataset import TablePairs, TarPairs, open_table
from clip_negatives.encoders import Encoder, image_encoder
from clip_negatives.errors import ArtifactError, DataError, InputError, UnknownNameError
from clip_negatives.pipelines import prepare as module
from clip_negatives.pipelines.prepare import cache_folder, prepare, prepare_cached
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.storage import ownership
from tests.pairs import listings, write_csv, write_tars

N = 64
CLUSTERER = "kmeans:n_clusters=6"


@pytest.fixture
def source(tmp_path: Path) -> TablePairs:
    """Return pairs with groups."""
    return open_table(write_csv(tmp_path / "data", N), Columns(group="item"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache of a test to itself."""
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of images at each call of the image encoder."""
    counts: list[int] = []
    plain = image_encoder

    def counting(spec: str) -> Encoder:
        encoder = plain(spec)

        def encode(images: Any) -> Any:
            counts.append(len(images))
            return encoder.encode(images)

        return Encoder(encode, fit=encoder.fit, name=encoder.name)

    monkeypatch.setattr(module, "image_encoder_of", counting)
    return counts


def test_folder_says_what_it_was_made_from(source: TablePairs, tmp_path: Path) -> None:
    folder = prepare(source, tmp_path / "clusters", Recipe(clusterer=CLUSTERER, seed=5), progress=False)
    assert folder.samples.column_names == ["key", "text", "image", "group", "bytes"]
    assert folder.samples["text"].to_pylist() == [item[1] for item in listings(N)]
    assert folder.samples["group"].to_pylist() == [item[2] for item in listings(N)]
    assert folder.clusters.image.n_clusters == folder.clusters.text.n_clusters == 6
    assert folder.clusters.image_features is not None
    wanted = {
        "image_encoder": "pixels:size=16,dim=64",
        "text_encoder": "tfidf:dim=64",
        "clusterer": CLUSTERER,
        "text_clusterer": CLUSTERER,
        "seed": 5,
        "data": source.fingerprint(),
    }
    assert wanted.items() <= folder.manifest.items()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["clusters", "data"]


def test_clusters_of_other_data_are_replaced_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (open_table(write_csv(tmp_path / str(n), n)) for n in (N, N - 1))
    for source in (first, first):
        prepare(source, tmp_path / "out", Recipe(clusterer=CLUSTERER), progress=False)
    assert caplog.messages == []
    prepare(second, tmp_path / "out", Recipe(clusterer=CLUSTERER), progress=False)
    assert [
        message for message in caplog.messages if "had clusters of other data or other columns. They were replaced." in message
    ] != []


def test_same_data_and_seed_give_the_same_clusters(source: TablePairs, tmp_path: Path) -> None:
    tars = TarPairs(write_tars(tmp_path, N))
    one, two, other = (
        prepare(data, tmp_path / name, Recipe(clusterer=CLUSTERER, seed=seed), progress=False).clusters.image.labels
        for data, name, seed in ((source, "one", 1), (tars, "two", 1), (source, "other", 2))
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_texts_can_be_clustered_otherwise(source: TablePairs, tmp_path: Path) -> None:
    folder = prepare(
        source,
        tmp_path / "clusters",
        Recipe(clusterer=CLUSTERER, text_clusterer="kmeans:n_clusters=4"),
        keep_features=False,
        progress=False,
    )
    assert (folder.clusters.image.n_clusters, folder.clusters.text.n_clusters) == (6, 4)
    assert folder.clusters.image_features is None


def test_a_path_is_opened_with_the_columns_of_the_recipe(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "data", N)
    recipe = Recipe(clusterer=CLUSTERER, columns=Columns(group="item"))
    folder = prepare(file, tmp_path / "clusters", recipe, progress=False)
    assert folder.samples["group"].to_pylist() == list(open_table(file, recipe.columns).groups or ())
    with pytest.raises(DataError, match="brand"):
        prepare(str(file), tmp_path / "clusters", Recipe(columns=Columns(group="brand")), progress=False)


def test_global_random_numbers_are_left_alone(source: TablePairs, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    prepare(source, tmp_path / "clusters", Recipe(clusterer=CLUSTERER), progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_work_folder_that_cannot_be_removed_is_no_error(
    source: TablePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems keep files that are still mapped, so none is."""
    mapped: list[bool] = []

    def keep(item: Path) -> None:
        if not item.exists():
            raise FileNotFoundError
        mapped.append(".clusters.features" in Path("/proc/self/maps").read_text())
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(ownership, "_remove", keep)
        folder = prepare(source, tmp_path / "clusters", Recipe(clusterer=CLUSTERER), keep_features=False, progress=False)
    assert folder.clusters.n_samples == N
    assert mapped == [False]
    prepare(source, tmp_path / "clusters", Recipe(clusterer=CLUSTERER), keep_features=False, progress=False)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["clusters", "data"]


@pytest.mark.parametrize("where", ["cluster_together", "write_clusters_from_files"])
def test_interrupted_run_leaves_no_folder_and_goes_on(
    source: TablePairs, tmp_path: Path, encodings: list[int], where: str
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with mock.patch.object(module, where, interrupted), pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "clusters", Recipe(clusterer=CLUSTERER), progress=False)
    assert not (tmp_path / "clusters").exists()
    prepare(source, tmp_path / "clusters", Recipe(clusterer=CLUSTERER), progress=False)
    assert encodings == [N]  # once, in the first run


def test_interrupted_run_leaves_the_older_folder(source: TablePairs, tmp_path: Path) -> None:
    prepare(source, tmp_path / "clusters", Recipe(clusterer=CLUSTERER), progress=False)
    before = (tmp_path / "clusters" / "manifest.json").read_text()
    Path(source.image_paths[9]).unlink()
    with pytest.raises(DataError, match="row 9"):
        prepare(open_table(source.path), tmp_path / "clusters", Recipe(clusterer=CLUSTERER), progress=False)
    assert (tmp_path / "clusters" / "manifest.json").read_text() == before


def test_what_can_fail_without_data_fails_before_encoding(source: TablePairs, tmp_path: Path, encodings: list[int]) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("precious")
    cases: tuple[tuple[str, dict[str, Any], type[Exception]], ...] = (
        ("thesis", {}, ArtifactError),
        ("clusters", {"clusterer": "kmens"}, UnknownNameError),
        ("clusters", {"text_clusterer": "kmeans:n_clusters=0"}, InputError),
        ("clusters", {"text_encoder": "tfidff"}, UnknownNameError),
        ("data/pairs.csv/clusters", {}, ArtifactError),
    )
    for output, options, error in cases:
        with pytest.raises(error):
            prepare(source, tmp_path / output, Recipe(**options), progress=False)
    assert encodings == []
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "precious"


def test_cached_folder_is_used_again(source: TablePairs, encodings: list[int]) -> None:
    one = prepare_cached(source, Recipe(clusterer=CLUSTERER), progress=False)
    two = prepare_cached(open_table(source.path, Columns(group="item")), Recipe(clusterer=CLUSTERER), progress=False)
    assert one.path == two.path == cache_folder(source, Recipe(clusterer=CLUSTERER))
    assert encodings == [N]


def test_damaged_cache_is_made_again(source: TablePairs, encodings: list[int]) -> None:
    folder = prepare_cached(source, Recipe(clusterer=CLUSTERER), progress=False)
    (folder.path / "clusters.safetensors").write_bytes(b"")
    assert prepare_cached(source, Recipe(clusterer=CLUSTERER), progress=False).clusters.n_samples == N
    assert encodings == [N, N]


def test_a_cache_that_cannot_be_written_names_its_variable(
    source: TablePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ArtifactError, match="Set CLIP_NEGATIVES_CACHE to another folder"):
        prepare_cached(source, Recipe(clusterer=CLUSTERER), progress=False)


def test_leftovers_beside_a_cached_folder_go(source: TablePairs, encodings: list[int]) -> None:
    """A process was killed as it removed what it had encoded: the folder is whole, and nobody makes it again."""
    folder = prepare_cached(source, Recipe(clusterer=CLUSTERER), progress=False).path
    for left in (f".{folder.name}.abcd1234.partial", f".{folder.name}.features"):
        ownership.claim_work(folder.parent / left)
        (folder.parent / left / "images").mkdir()
    assert prepare_cached(source, Recipe(clusterer=CLUSTERER), progress=False).path == folder
    assert [item.name for item in folder.parent.iterdir() if folder.name in item.name] == [folder.name]
    assert encodings == [N]


def test_cache_is_keyed_by_all_that_decides_the_clusters(
    source: TablePairs, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    folders = [
        cache_folder(source),
        cache_folder(source, Recipe(seed=1)),
        cache_folder(source, Recipe(image_encoder="pixels:dim=8")),
        cache_folder(source, Recipe(text_encoder="tfidf:dim=8")),
        cache_folder(source, Recipe(clusterer=CLUSTERER)),
        cache_folder(source, Recipe(text_clusterer=CLUSTERER)),
        cache_folder(open_table(source.path)),
        cache_folder(source, Recipe(image_encoder=f"timm:resnet18@{weights}")),
    ]
    weights.write_bytes(b"two")
    folders.append(cache_folder(source, Recipe(image_encoder=f"timm:resnet18@{weights}")))
    assert len(set(folders)) == len(folders)
    assert {folder.parent for folder in folders} == {cache}
    # The same in other words.
    assert (
        cache_folder(source, Recipe(image_encoder="pixels:dim=64,size=16", text_clusterer="kmeans:spherical=yes")) == folders[0]
    )
    monkeypatch.setattr("clip_negatives.storage.provenance.source_digest", lambda item: "other code of the same version")
    assert cache_folder(source) not in folders


SCRIPT = """
    import sys
    from pathlib import Path
    from clip_negatives.pipelines import prepare
    from clip_negatives.dataset import TablePairs, open_table
    from clip_negatives.features import encode

    def logging(*arguments, **options):
        with Path(sys.argv[2]).open("a") as stream:
            stream.write("encoded\\n")
        return encode(*arguments, **options)

    prepare.encode = logging
    prepare.prepare_cached(open_table(sys.argv[1]), prepare.Recipe(clusterer=sys.argv[3]), progress=False)
"""


def test_processes_that_start_together_prepare_once(source: TablePairs, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(source.path), str(tmp_path / "log"), CLUSTERER]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "encoded\n"
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_progress_is_shown_on_stderr_only(source: TablePairs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(source, tmp_path / "clusters", Recipe(clusterer=CLUSTERER))
    assert capsys.readouterr().out == ""


def test_missing_weights_leave_nothing_behind(source: TablePairs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        prepare(source, tmp_path / "new" / "clusters", Recipe(image_encoder="timm:resnet18@absent.pt"), progress=False)
    assert list((tmp_path / "new").iterdir()) == []
