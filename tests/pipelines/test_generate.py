"""Explicit incorrect pairs are written with what makes them reliable."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clip_negatives.dataset import TarPairs, open_table
from clip_negatives.errors import ArtifactError, InputError, UnknownNameError
from clip_negatives.interfaces import IncorrectPairs
from clip_negatives.pipelines import generate as module
from clip_negatives.pipelines.generate import SCHEMA, generate
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.storage.clusters_folder import ClustersFolder
from tests.pairs import listings, write_csv, write_tars

N = 64
CLUSTERER = "kmeans:n_clusters=6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ClustersFolder:
    """Return clusters of csv data."""
    base = tmp_path_factory.mktemp("generate")
    return prepare(open_table(write_csv(base, N)), base / "clusters", Recipe(clusterer=CLUSTERER), progress=False)


def test_rows_say_what_the_tables_and_the_weighting_say(folder: ClustersFolder, tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    count = generate(folder, file, per_image=2, weighting="weighted_infonce:beta=2,text_beta=0")
    table = pq.read_table(file)
    assert table.schema.equals(SCHEMA)
    assert count == table.num_rows == 2 * N
    row_of = {path: row for row, path in enumerate(folder.samples["image"].to_pylist())}
    texts, clusters = folder.samples["text"].to_pylist(), folder.clusters
    seen = set()
    for pair in table.to_pylist():
        i, j = row_of[pair["image"]], int(pair["incorrect_key"])
        assert i != j
        assert (pair["text"], pair["incorrect_text"]) == (texts[i], texts[j])
        a, b = int(clusters.image.labels[i]), int(clusters.image.labels[j])
        c, d = int(clusters.text.labels[i]), int(clusters.text.labels[j])
        assert a != b  # the paper: texts of different image clusters are exchanged
        similarity = float(clusters.image_similarity[a, b])
        assert pair["image_cluster_similarity"] == pytest.approx(similarity, abs=1e-6)
        assert pair["text_cluster_similarity"] == pytest.approx(float(clusters.text_similarity[c, d]), abs=1e-6)
        assert pair["weight"] == pytest.approx(2.718281828 ** (-2 * similarity), rel=1e-5)
        seen.add((i, j))
    assert len(seen) == 2 * N


def test_weights_of_a_neutral_weighting_are_one(folder: ClustersFolder, tmp_path: Path) -> None:
    generate(folder, tmp_path / "pairs.parquet", sampler="in_batch", weighting="uniform", batch_size=16)
    assert set(pq.read_table(tmp_path / "pairs.parquet")["weight"].to_pylist()) == {1.0}


def test_same_seed_gives_the_same_pairs(folder: ClustersFolder, tmp_path: Path) -> None:
    tables = []
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        generate(folder, tmp_path / name, seed=seed)
        tables.append(pq.read_table(tmp_path / name))
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_file_says_how_it_was_made(folder: ClustersFolder, tmp_path: Path) -> None:
    generate(folder, tmp_path / "pairs.parquet", seed=3)
    metadata = pq.read_schema(tmp_path / "pairs.parquet").metadata
    assert metadata[b"clip_negatives.sampler"] == b"cluster_similarity"
    assert metadata[b"clip_negatives.seed"] == b"3"
    assert metadata[b"clip_negatives.data"].decode() == folder.manifest["data"]


def test_pairs_are_drawn_and_written_in_parts(folder: ClustersFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that draws pairs of some images is asked for those of a part; one that draws all is asked once."""
    generate(folder, tmp_path / "one", sampler="cluster_diverse", weighting="uniform", batch_size=16)
    monkeypatch.setattr(module, "ROWS", 10)
    generate(folder, tmp_path / "many", sampler="cluster_diverse", weighting="uniform", batch_size=16)
    assert pq.read_table(tmp_path / "many").equals(pq.read_table(tmp_path / "one"))
    generate(folder, tmp_path / "parts", per_image=2)
    assert pq.read_metadata(tmp_path / "parts").num_row_groups == -(-N // 10)
    images = pq.read_table(tmp_path / "parts")["image"].to_pylist()
    assert images == [path for path in folder.samples["image"].to_pylist() for _ in range(2)]


def test_goes_on_after_the_parts_that_are_there(
    folder: ClustersFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the folder alone, and on other processes; what is finished is not drawn again."""
    monkeypatch.setattr(module, "ROWS", 10)
    generate(folder, tmp_path / "whole")
    drawn: list[int] = []

    def three_parts(pairs: module._Pairs, number: int) -> IncorrectPairs:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(number)
        return part(pairs, number)

    part = module._Pairs.part
    with monkeypatch.context() as patch:
        patch.setattr(module._Pairs, "part", three_parts)
        with pytest.raises(KeyboardInterrupt):
            generate(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with monkeypatch.context() as patch:
        patch.setattr(module._Pairs, "part", lambda pairs, number: drawn.append(number) or part(pairs, number))
        generate(folder.path, tmp_path / "again")
    assert drawn == list(range(-(-N // 10)))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / ".again.parts").exists()


def test_damaged_part_is_drawn_again(folder: ClustersFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 10)
    generate(folder, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_join", lambda *parts: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(folder, tmp_path / "again")
    part = tmp_path / ".again.parts" / "000001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    generate(folder, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


def test_parts_of_other_arguments_go(folder: ClustersFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(folder, tmp_path / "whole", seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_join", lambda *parts: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(folder, tmp_path / "again", seed=1)
    generate(folder, tmp_path / "again", seed=2)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


def test_parts_of_other_code_go(folder: ClustersFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    part = module._Pairs.part
    monkeypatch.setattr(module, "ROWS", 10)
    monkeypatch.setattr(module._Pairs, "part", lambda pairs, number: drawn.append(number) or part(pairs, number))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_join", lambda *parts: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(folder, tmp_path / "again")
    monkeypatch.setattr("clip_negatives.storage.provenance.source_digest", lambda item: "other code of the same version")
    drawn.clear()
    generate(folder, tmp_path / "again")
    assert drawn == list(range(-(-N // 10)))


def test_images_without_files_are_named_by_key(tmp_path: Path) -> None:
    folder = prepare(TarPairs(write_tars(tmp_path, N)), tmp_path / "clusters", Recipe(clusterer=CLUSTERER), progress=False)
    generate(folder, tmp_path / "pairs.parquet")
    table = pq.read_table(tmp_path / "pairs.parquet")
    keys = {item[0] for item in listings(N)}
    assert set(table["image"].to_pylist()) == keys
    assert set(table["incorrect_key"].to_pylist()) <= keys


def test_faults_leave_the_older_file(folder: ClustersFolder, tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    generate(folder, file)
    older = file.read_bytes()
    with pytest.raises(InputError, match="per_image must be at least 1"):
        generate(folder, file, per_image=0)
    with pytest.raises(UnknownNameError):
        generate(folder, file, weighting="unknown")
    with pytest.raises(ArtifactError, match="cannot be written"):
        generate(folder, file / "below")
    assert file.read_bytes() == older
    assert list(tmp_path.iterdir()) == [file]
    file.write_text("of another program")
    with pytest.raises(ArtifactError, match="it is not a file of clip-negatives"):
        generate(folder, file)
    assert file.read_text() == "of another program"
