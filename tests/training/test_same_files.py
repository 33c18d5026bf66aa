"""Before training, tars and images are compared with those that were clustered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from pathlib import Path
from unittest import mock

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clip_negatives import Clustering, Clusters, write_clusters
from clip_negatives.clustering.similarity import centroid_similarity
from clip_negatives.dataset import TarPairs, open_table
from clip_negatives.dataset.images import image_source
from clip_negatives.dataset.urls import END_BYTES, shard_digest, shard_size, shard_source
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.storage.clusters_folder import ClustersFolder, read_clusters
from clip_negatives.storage.labels_folder import read_labels, write_labels
from clip_negatives.storage.shards import ClusteredShards, KnownShards, ShardRows
from clip_negatives.storage.source_files import SourceFile
from clip_negatives.training import same_data, same_files
from clip_negatives.training.same_data import map_files
from clip_negatives.training.same_files import check_images, check_shards, warn_of_uncompared_shards
from tests.pairs import listings, write_csv, write_tars

N = 12


def without(folder: ClustersFolder, output: Path, *columns: str) -> ClustersFolder:
    """Return clusters as an older version wrote them: without some columns, and without source files."""
    write_clusters(output, folder.clusters, folder.samples.drop_columns(list(columns)), {})
    return read_clusters(output)


@pytest.fixture
def images(tmp_path: Path) -> ClustersFolder:
    """Return the clusters of a csv file."""
    return prepare(open_table(write_csv(tmp_path, N)), tmp_path / "clusters", progress=False)


@pytest.fixture
def tars(tmp_path: Path) -> ClustersFolder:
    """Return the clusters of three tars."""
    return prepare(TarPairs(write_tars(tmp_path, N, shards=3)), tmp_path / "clusters", progress=False)


def path_of(folder: ClustersFolder, row: int) -> Path:
    return Path(folder.samples["image"][row].as_py())


def shards_of(folder: ClustersFolder) -> list[str]:
    return list(dict.fromkeys(folder.samples["shard"].to_pylist()))


def same_size(file: Path, place: int = -1) -> None:
    """Change a byte of a file, and give it an old time."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, (0, 0))


def test_prepare_stores_sizes_and_digests_of_images(images: ClustersFolder) -> None:
    assert images.samples["bytes"].to_pylist() == [path_of(images, row).stat().st_size for row in range(N)]
    assert images.sources == [image_source(str(path_of(images, row))) for row in range(N)]
    check_images(images)


def test_image_of_another_size_is_named_with_its_row_and_both_sizes(images: ClustersFolder) -> None:
    file = path_of(images, 5)
    old = file.stat().st_size
    file.write_bytes(file.read_bytes() + b"more")
    os.utime(file, (0, 0))
    with pytest.raises(
        ArtifactError,
        match=rf"^The image {re.escape(str(file))} \(row 5 of .*\) has {old + 4} bytes, but had {old}.* 1 of {N} ",
    ):
        check_images(images)


def test_image_of_the_same_size_and_other_content(images: ClustersFolder) -> None:
    same_size(path_of(images, 7))
    with pytest.raises(ArtifactError, match=rf"{path_of(images, 7).name} \(row 7 of .* has other content"):
        check_images(images)


def test_missing_image_is_named(images: ClustersFolder, tmp_path: Path) -> None:
    path_of(images, 3).unlink()
    with pytest.raises(ArtifactError, match=rf"{path_of(images, 3).name} \(row 3 of .* does not exist"):
        check_images(images)
    with pytest.raises(ArtifactError, match="does not exist"):
        check_images(without(images, tmp_path / "older", "bytes"))


def test_relative_paths_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name / "images").mkdir(parents=True)
    csv = tmp_path / "here" / "pairs.csv"
    lines = ["filepath\ttitle"]
    for row, (_, text, _, image) in enumerate(listings(N)):
        image.save(tmp_path / "here" / "images" / f"{row}.png")
        image.save(tmp_path / "there" / "images" / f"{N - 1 - row}.png")
        lines.append(f"images/{row}.png\t{text}")
    csv.write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path / "here")
    folder = prepare(open_table(csv), tmp_path / "clusters", progress=False)
    check_images(folder)
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(
        ArtifactError, match=r"The image images/\d+\.png .* Run from the folder where the image paths are valid"
    ):
        check_images(folder)


def test_many_images_are_compared_in_part(images: ClustersFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_files, "CHECKED_FILES", 3)
    monkeypatch.setattr(same_files, "DIGESTED_FILES", 3)
    path_of(images, 1).write_bytes(b"")
    check_images(images)
    path_of(images, 4).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"row 4 of .* 1 of 3 checked images differ"):
        check_images(images)


def test_image_with_a_digest_is_compared_wherever_it_is(images: ClustersFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_files, "CHECKED_FILES", 3)  # rows 0, 4 and 8
    path_of(images, 1).unlink()
    with pytest.raises(ArtifactError, match=r"row 1 of .* does not exist"):
        check_images(images)


def test_clusters_of_no_files_and_of_older_versions_are_not_compared(images: ClustersFolder, tmp_path: Path) -> None:
    for row in range(N):
        path_of(images, row).write_bytes(b"other")
    check_images(without(images, tmp_path / "older", "bytes"))
    check_images(without(images, tmp_path / "texts", "bytes", "image"))


def test_hostile_source_files_are_not_read(images: ClustersFolder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    sources = [SourceFile(str(file), 0, "0" * 64) for file in (tmp_path / "pipe", "/dev/zero", "\0", tmp_path)]
    sources.append(SourceFile("/nowhere.png", None, "0" * 64))
    write_clusters(tmp_path / "hostile", images.clusters, images.samples, {}, sources)
    check_images(read_clusters(tmp_path / "hostile"))


@pytest.mark.parametrize("size", [0, 1, END_BYTES, END_BYTES + 1, 2 * END_BYTES, 5 * END_BYTES])
def test_digest_covers_both_ends(size: int, tmp_path: Path) -> None:
    file, memory = tmp_path / "0.tar", f"memory://digests/{size}.tar"
    content = bytearray(os.urandom(size))
    digests = set[str]()
    for place in (None, 0, -1):
        if place is not None and size:
            content[place] ^= 1
        file.write_bytes(content)
        with fsspec.open(memory, "wb") as stream:
            stream.write(bytes(content))
        assert shard_size(str(file)) == shard_size(memory) == size
        assert shard_digest(str(file), size) == shard_digest(memory, size)
        digests.add(shard_digest(str(file), size))
    assert len(digests) == (3 if size > 1 else 1 + size)


def test_prepare_stores_sizes_and_digests_of_tars_and_labels_keep_them(tars: ClustersFolder, tmp_path: Path) -> None:
    shards = shards_of(tars)
    assert len(shards) == 3
    assert tars.sources == [shard_source(shard) for shard in shards]
    labels = write_labels(tars.path, tmp_path / "labels")
    assert labels.shards.sources == {Path(shard).name: shard_source(shard) for shard in shards}


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("place", [None, -1])
def test_another_tar_of_the_same_name_and_keys(tars: ClustersFolder, labels: bool, place: int | None, tmp_path: Path) -> None:
    known: KnownShards = ClusteredShards.of(tars)
    if labels:
        known = write_labels(tars.path, tmp_path / "labels").shards
    (tmp_path / "copies").mkdir()
    copies = [shutil.copy(shard, tmp_path / "copies") for shard in shards_of(tars)]
    check_shards(known, copies)
    file = Path(copies[1])
    if place is None:
        file.write_bytes(file.read_bytes() + bytes(1024))
    else:
        same_size(file, place)
    with pytest.raises(
        ArtifactError, match=rf"^The shard {re.escape(str(file))} has ({file.stat().st_size} bytes|other content)"
    ):
        check_shards(known, copies)


def test_missing_tar_and_pipe(tars: ClustersFolder, caplog: pytest.LogCaptureFixture) -> None:
    known, shards = ClusteredShards.of(tars), shards_of(tars)
    warn_of_uncompared_shards(known, shards)
    assert caplog.text == ""
    Path(shards[1]).unlink()
    with pytest.raises(DataError, match=f"The tar {re.escape(shards[1])} does not exist"):
        check_shards(known, shards)
    piped = [f"pipe:cat {shard}" for shard in shards]
    check_shards(known, piped)
    warn_of_uncompared_shards(known, piped)
    assert caplog.text.count("3 of 3 shards were not compared with the clustered shards") == 1


def test_clustered_pipe_has_no_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tars(tmp_path, N, shards=1)
    tar = str(tmp_path / "pairs-000000.tar")
    folder = prepare(TarPairs(f"pipe:cat {tar}"), tmp_path / "clusters", progress=False)
    assert folder.sources == [SourceFile(f"pipe:cat {tar}", None, "")]
    known = write_labels(folder.path, tmp_path / "labels").shards
    assert list(known.sources.values()) == folder.sources
    check_shards(known, [tar])
    warn_of_uncompared_shards(known, [tar])
    assert "1 of 1 shards were not compared" in caplog.text


def test_folders_of_older_versions_are_read_with_a_warning(
    tars: ClustersFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    older = without(tars, tmp_path / "older")
    labels = write_labels(older.path, tmp_path / "labels")
    table = pq.read_table(labels.path / "shards.parquet")
    assert table["shard_bytes"].null_count == len(table)
    for known in (ClusteredShards.of(older), read_labels(labels.path).shards):
        caplog.clear()
        check_shards(known, shards_of(tars))
        warn_of_uncompared_shards(known, shards_of(tars))
        assert "were not compared" in caplog.text
    pq.write_table(table.drop_columns(["shard_bytes", "shard_sha256"]), labels.path / "shards.parquet")
    manifest = json.loads((labels.path / "labels.json").read_text())
    content = (labels.path / "shards.parquet").read_bytes()
    manifest["files"]["shards.parquet"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (labels.path / "labels.json").write_text(json.dumps(manifest))
    assert read_labels(labels.path).shards.sources == {}
    keys_alone = ShardRows.of(without(tars, tmp_path / "oldest", "shard"))
    assert [keys_alone.row("anything", key) for key in tars.samples["key"].to_pylist()] == list(range(N))
    caplog.clear()
    warn_of_uncompared_shards(keys_alone.shards, ["anything"])
    assert "samples are known by key alone" in caplog.text


def test_rows_are_known_by_shard_and_key(tars: ClustersFolder) -> None:
    rows, table = ShardRows.of(tars), tars.samples
    rows.shards.check(shards_of(tars))
    for row, (shard, key) in enumerate(zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True)):
        assert rows.row(shard, key) == rows.row(f"memory://elsewhere/{Path(shard).name}", key) == row
    assert rows.row(shards_of(tars)[0], table["key"][-1].as_py()) is None
    with pytest.raises(ArtifactError, match=r"^The shard /data/other\.tar was not clustered: .* prepare again"):
        rows.row("/data/other.tar", table["key"][0].as_py())
    with pytest.raises(ArtifactError, match=r"The shard /data/other\.tar was not clustered"):
        rows.shards.check([*shards_of(tars), "/data/other.tar"])
    with pytest.raises(ArtifactError, match="would both get the labels of"):
        rows.shards.check([shards_of(tars)[0], "/data/" + Path(shards_of(tars)[0]).name])


def test_shard_without_a_readable_sample_was_clustered(tmp_path: Path) -> None:
    centroids = torch.nn.functional.normalize(torch.ones(1, 2))
    side, similarity = Clustering(torch.zeros(2, dtype=torch.int64), centroids), centroid_similarity(centroids)
    samples = pa.table({"key": ["a", "b"], "text": ["a", "b"], "shard": ["data/0.tar"] * 2})
    sources = [SourceFile(f"data/{number}.tar", 9, "") for number in range(2)]
    write_clusters(tmp_path / "clusters", Clusters(side, side, similarity, similarity), samples, {}, sources)
    rows = ShardRows.of(read_clusters(tmp_path / "clusters"))
    rows.shards.check(["data/0.tar", "data/1.tar"])
    assert rows.row("data/1.tar", "a") is None


def test_files_are_looked_at_in_threads_only_if_the_first_ones_take_long() -> None:
    def look(pause: float) -> tuple[list[int], set[int]]:
        threads = set[int]()

        def double(number: int) -> int:
            threads.add(threading.get_ident())
            time.sleep(pause)
            return 2 * number

        return map_files(double, range(20), chunk=2), threads

    results, threads = look(0.01)
    assert results == list(range(0, 40, 2))
    assert len(threads) > 2
    with mock.patch.object(same_data, "AT_ONCE", 1.0):
        results, threads = look(0.001)
    assert results == list(range(0, 40, 2))
    assert threads == {threading.get_ident()}
    assert map_files(str, []) == []
