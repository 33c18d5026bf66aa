"""New shards hold every clustered sample once, byte for byte, in the composition of the sampler, and their labels with them."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from click.testing import CliRunner

from clip_negatives import read_clusters
from clip_negatives.cli import main
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ArtifactError, ClipNegativesError, DataError, InputError, UnsupportedError
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.pipelines.reshard import reshard
from clip_negatives.storage.labels_folder import read_labels, write_labels
from clip_negatives.storage.shards import last_parts
from tests.pairs import write_csv, write_tars

N, SHARDS, SIZE = 64, 4, 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four tars of 16 samples and their clusters."""
    home = tmp_path_factory.mktemp("shards")
    prepare(
        open_pairs(write_tars(home, N, shards=SHARDS)),
        home / "clusters",
        Recipe(clusterer="kmeans:n_clusters=4"),
        progress=False,
    )
    return home


def tars(folder: Path) -> str:
    return str(folder / f"pairs-{{000000..{SHARDS - 1:06d}}}.tar")


def samples(shards: list[str]) -> dict[str, dict[str, bytes]]:
    """Return the files of each sample by its key, as webdataset reads them."""
    stages = wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples())
    found = [{name: value for name, value in sample.items() if name != "__url__"} for sample in stages]
    assert len({sample["__key__"] for sample in found}) == len(found)
    return {sample["__key__"]: sample for sample in found}


def test_every_sample_once_and_a_share_of_every_cluster(folder: Path, tmp_path: Path) -> None:
    done = reshard(tars(folder), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)
    sizes = json.loads((tmp_path / "new" / "sizes.json").read_text())
    assert (done.shards, done.samples) == (len(sizes), N) == (N // SIZE, N)
    assert sum(sizes.values()) == N
    shards = [str(tmp_path / "new" / name) for name in sizes]
    assert samples(shards) == samples([str(file) for file in sorted(folder.glob("*.tar"))])
    clusters = read_clusters(folder / "clusters")
    row = {key: number for number, key in enumerate(clusters.samples["key"].to_pylist())}
    labels = clusters.clusters.image.labels
    for shard, size in zip(shards, sizes.values(), strict=True):
        rows = torch.tensor([row[key] for key in samples([shard])])
        assert len(rows) == size
        share = labels[rows].bincount(minlength=4) - labels.bincount() * size / N
        assert float(share.abs().max()) <= 2
    assert not (tmp_path / ".new.buckets").exists()


def test_labels_of_the_new_shards(folder: Path, tmp_path: Path) -> None:
    reshard(tars(folder), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)
    new, old = read_labels(tmp_path / "new" / "labels"), write_labels(folder / "clusters", tmp_path / "labels")
    known = {key: pair for shard in sorted(folder.glob("*.tar")) for key, pair in old.shards.of(str(shard)).items()}
    assert len(known) == N
    for shard in (tmp_path / "new").glob("*.tar"):
        assert new.shards.of(f"s3://elsewhere/{shard.name}") == {key: known[key] for key in samples([str(shard)])}
    assert new.shards.of("s3://elsewhere/999999.tar") == {}
    assert torch.equal(new.clusters.image.sizes(), read_clusters(folder / "clusters").clusters.image.sizes())


def test_two_processes_one_after_the_other_and_an_interruption(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a shard is written it is the same; one that is there is not written again."""
    expected, found = tmp_path / "one", tmp_path / "two"
    reshard(tars(folder), folder / "clusters", expected, samples_per_shard=SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(
            "clip_negatives.pipelines.reshard._Job.finish", lambda self, plan: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            reshard(tars(folder), folder / "clusters", found, samples_per_shard=SIZE)
    assert not (found / "sizes.json").exists()
    (found / "000001.tar").unlink()
    before = (found / "000000.tar").stat().st_mtime_ns
    reshard(tars(folder), folder / "clusters", found, samples_per_shard=SIZE)
    assert (found / "000000.tar").stat().st_mtime_ns == before
    assert {file.name: file.read_bytes() for file in found.glob("*.tar")} == {
        file.name: file.read_bytes() for file in expected.glob("*.tar")
    }
    again = reshard(tars(folder), folder / "clusters", found, samples_per_shard=SIZE)  # nothing to do
    assert again.shards == N // SIZE


def test_copies_under_another_address(folder: Path, tmp_path: Path) -> None:
    """Also where the name alone tells which tar is meant, and through a file system of fsspec."""
    for file in folder.glob("*.tar"):
        shutil.copy(file, tmp_path / file.name)
    done = reshard(f"file://{tars(tmp_path)}", folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)
    assert done.samples == N


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"samples_per_shard": 0}, InputError, "must be at least 1"),
        ({"sampler": "in_batch"}, UnsupportedError, "in_batch does not compose batches"),
        ({"data": "pairs-000000.tar"}, DataError, "Name all tars that were clustered"),
    ],
)
def test_what_is_refused(folder: Path, tmp_path: Path, change: dict[str, object], error: type, reason: str) -> None:
    asked = {"data": tars(folder), "samples_per_shard": SIZE, **change}
    if asked["data"] == "pairs-000000.tar":
        asked["data"] = str(folder / "pairs-000000.tar")
    with pytest.raises(error, match=reason):
        reshard(str(asked.pop("data")), folder / "clusters", tmp_path / "new", **asked)
    assert not (tmp_path / "new" / "sizes.json").exists()


def test_other_shards_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    reshard(tars(folder), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)
    with pytest.raises(InputError, match="other tars, clusters or settings: the seed was 0, is 1"):
        reshard(tars(folder), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE, seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(ArtifactError, match="was not written by this command"):
        reshard(tars(folder), folder / "clusters", tmp_path / "other", samples_per_shard=SIZE)


def test_a_sample_that_is_gone(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.tar"):
        shutil.copy(file, tmp_path / file.name)
    with tarfile.open(tmp_path / "pairs-000002.tar", "w"):
        pass
    with pytest.raises(ArtifactError, match=r"pairs-000002.tar has 10240 bytes, but the clustered shard .* had"):
        reshard(tars(tmp_path), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)


def test_other_tars_of_the_same_names_and_keys_are_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.tar"):
        shutil.copy(file, tmp_path / file.name)
    changed = tmp_path / "pairs-000001.tar"
    changed.write_bytes(changed.read_bytes().replace(b"IDAT", b"IDAU", 1))
    before = set(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match=r"pairs-000001.tar has other content than the clustered shard"):
        reshard(tars(tmp_path), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("act", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_shard_of_a_finished_output_that_is_gone_or_cut_is_written_again(act: object, folder: Path, tmp_path: Path) -> None:
    reshard(tars(folder), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)
    shard = tmp_path / "new" / "000001.tar"
    content = shard.read_bytes()
    act(shard)
    reshard(tars(folder), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)
    assert shard.read_bytes() == content


def test_other_code_of_the_sampler_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reshard(tars(folder), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)
    monkeypatch.setattr("clip_negatives.storage.provenance.source_digest", lambda item: 64 * "0")
    with pytest.raises(InputError, match="the source of the negative sampler cluster_similarity differs"):
        reshard(tars(folder), folder / "clusters", tmp_path / "new", samples_per_shard=SIZE)


def test_clusters_of_csv_have_no_shards(tmp_path: Path) -> None:
    prepare(
        open_pairs(str(write_csv(tmp_path, 32))), tmp_path / "clusters", Recipe(clusterer="kmeans:n_clusters=4"), progress=False
    )
    for call in (
        lambda: write_labels(tmp_path / "clusters", tmp_path / "labels"),
        lambda: reshard("a.tar", tmp_path / "clusters", tmp_path / "new"),
    ):
        with pytest.raises(ClipNegativesError, match="does not name shards"):
            call()


def test_damaged_labels_folder(folder: Path, tmp_path: Path) -> None:
    write_labels(folder / "clusters", tmp_path / "labels")
    with pytest.raises(ArtifactError, match=r"is not a labels folder: no labels\.json"):
        read_labels(folder / "clusters")
    table = pq.read_table(tmp_path / "labels" / "shards.parquet")
    pq.write_table(table.slice(0, 1), tmp_path / "labels" / "shards.parquet")
    with pytest.raises(ArtifactError, match=r"shards.parquet: missing, or of another size"):
        read_labels(tmp_path / "labels")


def test_neither_folder_takes_the_place_of_the_other(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "clusters", tmp_path / "clusters")
    with pytest.raises(ArtifactError, match=r"is not a labels folder: it has files, but no labels\.json"):
        write_labels(tmp_path / "clusters", tmp_path / "clusters")
    assert read_clusters(tmp_path / "clusters").samples.num_rows == N
    write_labels(tmp_path / "clusters", tmp_path / "labels")
    with pytest.raises(ArtifactError, match=r"is not a clusters folder: it has files, but no manifest\.json"):
        prepare(open_pairs(tars(folder)), tmp_path / "labels", Recipe(clusterer="kmeans:n_clusters=4"), progress=False)


def test_files_of_another_system_between_those_of_a_sample(folder: Path, tmp_path: Path) -> None:
    """Tars of macOS have ``._name`` files, which webdataset leaves out; a tar that is torn serves up to the tear."""
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as old, tarfile.open(tmp_path / file.name, "w") as new:
            for member in old:
                new.addfile(tarfile.TarInfo(f"._{member.name}"))
                new.addfile(member, old.extractfile(member))
    torn = max(tmp_path.glob("*.tar"))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size * 2 // 3])
    recipe = Recipe(clusterer="kmeans:n_clusters=4")
    folder = prepare(open_pairs(tars(tmp_path)), tmp_path / "clusters", recipe, progress=False, max_lost=0.1)
    assert N * 3 // 4 < folder.samples.num_rows < N
    done = reshard(tars(tmp_path), tmp_path / "clusters", tmp_path / "new", samples_per_shard=20)
    written = samples([str(file) for file in sorted((tmp_path / "new").glob("*.tar"))])
    assert set(written) == set(folder.samples["key"].to_pylist())
    assert all({"png", "txt"} <= set(files) for files in written.values())
    assert done.samples == len(written)


def test_buckets_of_another_run_are_not_used(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted, its shards taken away, and then other data under the same names."""
    home = tmp_path / "home"
    shutil.copytree(folder, home)
    prepare(open_pairs(tars(home)), home / "clusters", Recipe(clusterer="kmeans:n_clusters=4"), progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(
            "clip_negatives.pipelines.shuffle.Shuffle.write_shards", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            reshard(tars(home), home / "clusters", home / "new", samples_per_shard=SIZE)
    shutil.rmtree(home / "new")
    first, last = min(home.glob("*.tar")), max(home.glob("*.tar"))
    kept = first.read_bytes()
    first.write_bytes(last.read_bytes())
    last.write_bytes(kept)
    prepare(open_pairs(tars(home)), home / "clusters", Recipe(clusterer="kmeans:n_clusters=4"), progress=False)
    reshard(tars(home), home / "clusters", home / "new", samples_per_shard=SIZE)
    shards = [str(file) for file in sorted((home / "new").glob("*.tar"))]
    assert samples(shards) == samples([str(file) for file in sorted(folder.glob("*.tar"))])


def test_what_the_sampler_refuses_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantile"):
        reshard(tars(folder), folder / "clusters", tmp_path / "new", sampler="cluster_similarity:image_quantile=2.0")
    assert list(tmp_path.iterdir()) == []


def test_changed_labels_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "clusters", tmp_path / "clusters")
    file = tmp_path / "clusters" / "clusters.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"clusters.safetensors: changed after it was written"):
        write_labels(tmp_path / "clusters", tmp_path / "labels")


def test_shards_that_their_addresses_do_not_tell_apart(folder: Path, tmp_path: Path) -> None:
    written = write_labels(folder / "clusters", tmp_path / "labels").shards
    written.check([str(file) for file in folder.glob("*.tar")])
    with pytest.raises(ArtifactError, match=r"the labels of pairs-000000.tar"):
        written.check(["one/pairs-000000.tar", "two/pairs-000000.tar"])
    assert last_parts("pipe:cat 'a/p0.tar' 2>/dev/null", 1) == "p0.tar"
    assert last_parts("s3://bucket/a/000.tar", 2) == "a/000.tar"
    assert last_parts("pipe:aws s3 cp 's3://bucket/a/000.tar' -", 1) == "000.tar"
    assert last_parts("pipe:something else", 1) == "pipe:something else"


def test_command_line(folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(main, ["labels", str(folder / "clusters"), str(tmp_path / "labels")])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'labels'}: labels of {N} samples in {SHARDS} shards\n")
    new = [tars(folder), str(folder / "clusters"), str(tmp_path / "new"), "--samples-per-shard", "32"]
    done = run(main, ["reshard", *new])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'new'}: {N} samples in 2 shards\n")
    done = run(main, ["reshard", *new, "--sampler", "in_batch"])
    assert done.exit_code == 2
    assert done.output.startswith("Error: The sampler in_batch does not compose batches")


@pytest.mark.parametrize("name", ["plan.json", "sizes.json"])
def test_what_an_earlier_run_wrote_is_damaged(folder: Path, tmp_path: Path, name: str) -> None:
    reshard(tars(folder), folder / "clusters", tmp_path / "out", samples_per_shard=SIZE)
    (tmp_path / "out" / name).write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match=rf"{name} is damaged.*Delete its folder"):
        reshard(tars(folder), folder / "clusters", tmp_path / "out", samples_per_shard=SIZE)
