"""Resharding reads each old tar once, continues after interruptions, and writes the same shards to any place."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from clip_negatives import read_clusters
from clip_negatives.cli import main
from clip_negatives.dataset import open_pairs
from clip_negatives.distributed.task import Task
from clip_negatives.errors import ArtifactError, DataError, InputError
from clip_negatives.pipelines import clustered_tars, parts_by_task, shuffle
from clip_negatives.pipelines.given_labels import write_given_labels
from clip_negatives.pipelines.new_shards import NewShards
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.pipelines.reshard import reshard
from clip_negatives.storage import claims
from clip_negatives.storage.labels_folder import write_labels
from clip_negatives.storage.sharded_labels import labelled_tars
from tests.pairs import write_tars

N, TARS, SIZE = 48, 4, 12
RECIPE = Recipe(image_encoder="pixels:dim=8", text_encoder="tfidf:dim=8", clusterer="kmeans:n_clusters=4")
NAMES = [f"pairs-{number:06d}.tar" for number in range(TARS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four tars, their clusters, and the new shards of an undisturbed run."""
    home = tmp_path_factory.mktemp("shards")
    write_tars(home, N, shards=TARS)
    prepare(open_pairs(tars(home)), home / "clusters", RECIPE, progress=False)
    reshard(tars(home), home / "clusters", home / "expected", samples_per_shard=SIZE)
    return home


def tars(folder: Path | str, *, before: str = "", after: str = "") -> str:
    return "::".join(f"{before}{folder}/{name}{after}" for name in NAMES)


def content(folder: Path) -> dict[str, bytes]:
    """Return all files but the settings and manifests, which have addresses and times."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in ("plan.json", "labels.json")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def again(folder: Path, output: Path | str, data: str = "", **options: object) -> None:
    reshard(data or tars(folder), folder / "clusters", output, samples_per_shard=SIZE, **options)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how often each old tar is opened, by its name."""
    count, open_url = Counter[str](), clustered_tars.open_url

    def counted(url: str) -> object:
        count[Path(url).name] += 1
        return open_url(url)

    monkeypatch.setattr(clustered_tars, "open_url", counted)
    return count


class Killed(BaseException):
    """The end of a process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int) -> None:
    """Let the process end within the call number `call` of a method, before it does anything."""
    count, original = iter(range(1000)), getattr(owner, method)

    def killing(*given: object, **named: object) -> object:
        if next(count) == call:
            raise Killed
        return original(*given, **named)

    monkeypatch.setattr(owner, method, killing)


@pytest.mark.parametrize("buckets", [1, 2, 3])
def test_each_old_tar_is_opened_once_for_any_number_of_buckets(
    buckets: int, folder: Path, tmp_path: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "MAX_BUCKETS", buckets)
    again(folder, tmp_path / "new")
    assert opened == dict.fromkeys(NAMES, 1)
    assert content(tmp_path / "new") == content(folder / "expected")
    assert [item.name for item in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("owner", "method", "call", "read"),
    [
        (shuffle.BucketWriter, "add", 30, 2),  # in the third tar
        (shuffle.BucketWriter, "complete", 1, 3),
        (shuffle.Bucket, "read", 2, 0),
        (NewShards, "publish_labels", 0, 0),
    ],
)
def test_killed_run_continues_without_reading_complete_tars_again(
    owner: type, method: str, call: int, read: int, folder: Path, tmp_path: Path, opened: Counter[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, owner, method, call)
        with pytest.raises(Killed):
            again(folder, tmp_path / "new")
    assert not (tmp_path / "new" / "sizes.json").exists()
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "new").glob("*.tar")}
    opened.clear()
    again(folder, tmp_path / "new")
    assert opened == dict.fromkeys(NAMES[TARS - read :], 1)
    assert {name: (tmp_path / "new" / name).stat().st_mtime_ns for name in written} == written
    assert content(tmp_path / "new") == content(folder / "expected")


def stop_before_writing(folder: Path, output: Path) -> Path:
    """Stop a run once all tars are read, and return the folder of its part."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, shuffle.Shuffle, "write_shards", 0)
        with pytest.raises(Killed):
            again(folder, output)
    (part,) = output.with_name(f".{output.name}.buckets").glob("*/part-*")
    return part


@pytest.mark.parametrize("name", ["001.samples", "003.index", "tars.jsonl"])
def test_tars_whose_bucket_files_are_cut_are_read_again(name: str, folder: Path, tmp_path: Path, opened: Counter[str]) -> None:
    file = stop_before_writing(folder, tmp_path / "new") / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    opened.clear()
    again(folder, tmp_path / "new")
    assert 0 < len(opened) < TARS
    assert set(opened) == set(NAMES[-len(opened) :])
    assert content(tmp_path / "new") == content(folder / "expected")


@pytest.mark.parametrize("name", ["001.samples", "003.index"])
def test_changed_bucket_file_is_an_error(name: str, folder: Path, tmp_path: Path) -> None:
    file = stop_before_writing(folder, tmp_path / "new") / name
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    with pytest.raises(ArtifactError, match=rf"/{name[:3]} is damaged\. Delete the folder {tmp_path}/\.new\.buckets, and run"):
        again(folder, tmp_path / "new")
    shutil.rmtree(tmp_path / ".new.buckets")
    again(folder, tmp_path / "new")
    assert content(tmp_path / "new") == content(folder / "expected")


def test_tasks_share_the_work_and_write_the_same_files(folder: Path, tmp_path: Path) -> None:
    """Three processes at once, of which one is killed; then another number of tasks."""
    code = (
        "import sys; from clip_negatives.distributed.task import Task; from clip_negatives.pipelines.reshard import reshard; "
        f"reshard({tars(folder)!r}, {str(folder / 'clusters')!r}, {str(tmp_path / 'new')!r}, "
        f"samples_per_shard={SIZE}, task=Task.parse(sys.argv[1]))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, f"{number}/3"]) for number in (1, 2, 3)]
    work = tmp_path / ".new.buckets"
    while not list(work.glob("*/part-*")) and any(process.poll() is None for process in running):
        time.sleep(0.01)
    running[0].kill()
    running[0].wait()
    assert [process.wait() for process in running[1:]] == [0, 0]
    assert content(tmp_path / "new") == content(folder / "expected")
    assert not work.exists()


def test_task_waits_for_a_claim_and_takes_it_over_when_it_is_stale(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, shuffle.Shuffle, "read_tars", 0)
        with pytest.raises(Killed):
            again(folder, tmp_path / "new")
    (home,) = (item for item in (tmp_path / ".new.buckets").iterdir() if item.is_dir())
    monkeypatch.setattr(claims, "STALE", 1.5)
    monkeypatch.setattr(parts_by_task, "POLLED", 0.05)
    monkeypatch.setattr(parts_by_task, "PATIENCE", 0.2)
    (home / "claims").mkdir()
    for name in ("tar-000001", "bucket-000"):
        (home / "claims" / f"{name}.json").write_text(json.dumps({"task": "2/2", "host": "other", "time": time.time()}))
    started = time.monotonic()
    again(folder, tmp_path / "new", task=Task(1, 2))
    assert time.monotonic() - started > 1
    assert opened == dict.fromkeys(NAMES, 1)
    assert "waiting for other tasks, which have claimed 1 parts, such as tar-000001" in caplog.text
    assert content(tmp_path / "new") == content(folder / "expected")


def test_failed_part_is_left_to_other_tasks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(clustered_tars, "open_url", lambda url: (_ for _ in ()).throw(OSError("no network")))
        with pytest.raises(DataError, match=r"pairs-000000\.tar cannot be read: no network"):
            again(folder, tmp_path / "new", task=Task(1, 2))
    started = time.monotonic()
    again(folder, tmp_path / "new", task=Task(2, 2))
    assert time.monotonic() - started < claims.STALE / 10
    assert content(tmp_path / "new") == content(folder / "expected")


def test_labels_folder_gives_the_same_shards_as_its_clusters(folder: Path, tmp_path: Path) -> None:
    write_labels(folder / "clusters", tmp_path / "labels")
    reshard(tars(folder), tmp_path / "labels", tmp_path / "new", samples_per_shard=SIZE)
    assert content(tmp_path / "new") == content(folder / "expected")


def test_shards_of_other_labels_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    """The centroids and the number of samples of each cluster are the same; two samples have changed clusters."""
    rows = pa.concat_tables([table.append_column("shard", pa.array([tar] * len(table))) for tar, table in labels_of(folder)])
    changed = rows["image_label"].to_pylist()
    first, second = 0, next(row for row, label in enumerate(changed) if label != changed[0])
    centroids = ",".join(write_centroids(folder, tmp_path))
    for name in ("before", "after"):
        pq.write_table(rows.set_column(1, "image_label", pa.array(changed, pa.int32())), tmp_path / f"{name}.parquet")
        write_given_labels(str(tmp_path / f"{name}.parquet"), centroids, tmp_path / name)
        changed[first], changed[second] = changed[second], changed[first]
    reshard(tars(folder), tmp_path / "before", tmp_path / "new", samples_per_shard=SIZE)
    with pytest.raises(InputError, match="was written with other tars, clusters or settings"):
        reshard(tars(folder), tmp_path / "after", tmp_path / "new", samples_per_shard=SIZE)


def labels_of(folder: Path) -> Iterator[tuple[str, pa.Table]]:
    return labelled_tars(folder / "clusters").tables()


def write_centroids(folder: Path, home: Path) -> list[str]:
    """Write the centroids of the clusters, and return their files."""
    clusters = read_clusters(folder / "clusters").clusters
    for name in ("image", "text"):
        np.save(home / f"{name}.npy", getattr(clusters, name).centroids.numpy())
    return [str(home / f"{name}.npy") for name in ("image", "text")]


def test_tars_of_a_pipe_are_compared_while_they_are_read(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again(folder, tmp_path / "new", tars(folder, before="pipe:cat "))
    assert content(tmp_path / "new") == content(folder / "expected")
    assert "compared" not in caplog.text
    for name in NAMES:
        shutil.copy(folder / name, tmp_path / name)
    file = tmp_path / NAMES[1]
    file.write_bytes(file.read_bytes().replace(b"IDAT", b"IDAU", 1))
    with pytest.raises(ArtifactError, match=rf"cat {file} has other content than the clustered shard"):
        again(folder, tmp_path / "other", tars(tmp_path, before="pipe:cat "))
    assert not list((tmp_path / "other").glob("*.tar"))


def test_pipe_that_fails_is_an_error(folder: Path, tmp_path: Path) -> None:
    data = tars(folder, before="pipe:head -c 9000 ")
    with pytest.raises(DataError, match=r"pairs-000000\.tar is damaged, or its command failed, after 9000 bytes"):
        again(folder, tmp_path / "new", data)
    again(folder, tmp_path / "whole", tars(folder, before="pipe:cat ", after=" && exit 0"))


def test_tars_without_a_known_size_are_compared_by_keys(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in NAMES:
        shutil.copy(folder / name, tmp_path / name)
    data = tars(tmp_path, before="pipe:cat ")
    prepare(open_pairs(data), tmp_path / "clusters", RECIPE, progress=False)
    with caplog.at_level(logging.INFO):
        again(tmp_path, tmp_path / "new", data)
    assert "4 of 4 tars are compared with the clustered tars by the keys of their samples alone" in caplog.text
    assert content(tmp_path / "new").keys() == content(folder / "expected").keys()
    key = (tmp_path / NAMES[2]).read_bytes()[:100].partition(b".png")[0]
    changed = (tmp_path / NAMES[2]).read_bytes().replace(key, key[:-1] + b"x")
    (tmp_path / NAMES[2]).write_bytes(_with_checksums(changed))
    with pytest.raises(DataError, match=rf"{NAMES[2]} lacks the clustered sample {key.decode()}\. Cluster the data again"):
        again(tmp_path, tmp_path / "other", data)


def _with_checksums(tar: bytes) -> bytes:
    """Return a tar whose headers, with changed names, have the right checksums."""
    blocks = [bytearray(tar[start : start + 512]) for start in range(0, len(tar), 512)]
    for block in blocks:
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def test_compressed_tars_give_the_same_samples(folder: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(gzip.compress((folder / name).read_bytes(), 1))
    prepare(open_pairs(tars(tmp_path)), tmp_path / "clusters", RECIPE, progress=False)
    again(tmp_path, tmp_path / "new")
    new, expected = content(tmp_path / "new"), content(folder / "expected")
    assert [new[f"{number:06d}.tar"] for number in range(4)] == [expected[f"{number:06d}.tar"] for number in range(4)]


@pytest.fixture
def store() -> Iterator[str]:
    """Return the URL of a folder in an object store."""
    yield "memory://bucket/new"
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def stored() -> dict[str, bytes]:
    system = fsspec.filesystem("memory")
    paths = (path for path in system.find("/bucket/new") if not path.endswith(("plan.json", "labels.json")))
    return {path.removeprefix("/bucket/new/"): system.cat(path) for path in paths}


def test_object_store_gets_the_same_files(folder: Path, tmp_path: Path, store: str, opened: Counter[str]) -> None:
    again(folder, store, work_folder=tmp_path / "work")
    assert opened == dict.fromkeys(NAMES, 1)
    assert stored() == content(folder / "expected")
    assert list((tmp_path / "work").iterdir()) == []
    opened.clear()
    again(folder, store, work_folder=tmp_path / "work")  # nothing to do
    assert not opened
    fsspec.filesystem("memory").rm("/bucket/new/000001.tar")
    again(folder, store, work_folder=tmp_path / "work")
    assert stored() == content(folder / "expected")


def test_object_store_has_sizes_only_when_all_else_is_complete(folder: Path, tmp_path: Path, store: str) -> None:
    uploads = list[str]()
    system = fsspec.filesystem("memory")
    for call in (0, 2, 5, 6):  # settings, tar, labels, sizes
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, type(system), "put_file", call)
            with pytest.raises(Killed):
                again(folder, store, work_folder=tmp_path / "work")
        assert not system.exists("/bucket/new/sizes.json")
    with pytest.MonkeyPatch.context() as patch:
        put_file = type(system).put_file
        patch.setattr(
            type(system), "put_file", lambda self, *given, **named: (uploads.append(given[1]), put_file(self, *given, **named))
        )
        again(folder, store, work_folder=tmp_path / "work")
    assert [path.rpartition("/")[2] for path in uploads[-2:]] == ["labels.json", "sizes.json"]
    assert stored() == content(folder / "expected")


def test_object_store_of_others_is_not_written(folder: Path, tmp_path: Path, store: str) -> None:
    with pytest.raises(InputError, match=r"is a URL, but the samples wait on a local disk\. Name a folder.*work_folder="):
        again(folder, store)
    fsspec.filesystem("memory").pipe("/bucket/new/thesis.tex", b"precious")
    with pytest.raises(ArtifactError, match=r"memory://bucket/new was not written by this command"):
        again(folder, store, work_folder=tmp_path / "work")
    assert stored() == {"thesis.tex": b"precious"}


def test_command_line_with_an_object_store(folder: Path, tmp_path: Path, store: str) -> None:
    line = ["reshard", tars(folder), str(folder / "clusters"), store, "--samples-per-shard", str(SIZE)]
    shown = CliRunner().invoke(main, line)
    assert (shown.exit_code, shown.stderr.count("\n")) == (2, 1)
    assert "Name a folder with enough space: --work-folder FOLDER." in shown.stderr
    shown = CliRunner().invoke(main, [*line, "--work-folder", str(tmp_path / "work")])
    assert shown.stdout == f"{store}: {N} samples in 4 shards\n"
    assert f"Copy {store}/labels to a folder, here labels.\nNext: clip-negatives train --clusters labels " in shown.stderr
