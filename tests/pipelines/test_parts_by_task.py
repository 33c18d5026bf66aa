"""Independent tasks encode, cluster and assign parts; the result depends on neither their number nor their order."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clip_negatives import Columns
from clip_negatives.clustering.fit import cluster_features
from clip_negatives.dataset.urls import expand_urls, shard_source
from clip_negatives.distributed.task import Task
from clip_negatives.errors import ArtifactError, DataError, InputError, UnsupportedError
from clip_negatives.pipelines import part_rows
from clip_negatives.pipelines.assigned_parts import assign_parts
from clip_negatives.pipelines.encoded_parts import encode_parts, parts_folder
from clip_negatives.pipelines.given_labels import write_given_labels
from clip_negatives.pipelines.part_rows import drawn_rows, quotas, read_rows
from clip_negatives.pipelines.parts_by_task import TaskReport
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.pipelines.sampled_centroids import write_centroids
from clip_negatives.storage import claims
from clip_negatives.storage.task_folder import TaskFolder
from tests.pairs import listings, write_csv, write_tars

N, SHARDS, K = 48, 6, 4
RECIPE = Recipe(image_encoder="pixels:size=4,dim=0", text_encoder="hashing:dim=32")


def encode(data: str | Path, parts: str | Path, task: str = "1/1", recipe: Recipe = RECIPE, **options: Any) -> TaskReport:
    return encode_parts(data, parts, recipe, task=Task.parse(task), progress=False, **options)


def assign(home: Path, assignments: str | Path, task: str = "1/1") -> TaskReport:
    return assign_parts(home / "parts", home / "centroids", assignments, task=Task.parse(task), progress=False)


def contents(folder: str | Path) -> dict[str, bytes]:
    """Return the files of a folder, a path or a URL, except for claims."""
    system, root = fsspec.core.url_to_fs(str(folder))
    files = {file.removeprefix(root): bytes(system.cat_file(file)) for file in system.find(root)}
    return {name: content for name, content in files.items() if not name.startswith("/claims")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tars, their parts, centroids and assignments, all made by one task."""
    folder = tmp_path_factory.mktemp("tasks")
    assert encode(write_tars(folder, N, shards=SHARDS), folder / "parts") == report(folder / "parts", range(SHARDS))
    clusterer = f"kmeans:n_clusters={K}"
    write_centroids(folder / "parts", folder / "centroids", clusterer=clusterer, points_per_cluster=8, progress=False)
    assign(folder, folder / "assignments")
    return folder


def report(parts: Path, done: Any) -> TaskReport:
    return TaskReport(SHARDS, [parts_folder(parts).opened().names[number] for number in done])


def tars(home: Path) -> str:
    return str(home / f"pairs-{{000000..{SHARDS - 1:06d}}}.tar")


@pytest.fixture
def store() -> Iterator[str]:
    """Return the URL of a folder in memory, which is removed afterwards."""
    system = fsspec.filesystem("memory")
    yield "memory://bucket"
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_features_are_those_of_each_image_in_order(home: Path) -> None:
    folder = parts_folder(home / "parts").opened()
    rows = np.concatenate([np.load(home / "parts" / name / "image.npy") for name in folder.names])
    thumbnails = (image.convert("RGB").resize((4, 4), Image.Resampling.BOX) for *_, image in listings(N))
    expected = np.stack([np.asarray(thumbnail, np.float64).ravel() / 255 - 0.5 for thumbnail in thumbnails])
    np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    samples = [pq.read_table(home / "parts" / name / "samples.parquet").to_pylist() for name in folder.names]
    assert [(row["key"], row["text"]) for part in samples for row in part] == [pair[:2] for pair in listings(N)]


@pytest.mark.parametrize("order", [range(7), [6, 2, 4, 0, 5, 3, 1]])
def test_seven_tasks_in_any_order_write_what_one_task_writes(home: Path, tmp_path: Path, order: Any) -> None:
    for number in order:
        encode(tars(home), tmp_path / "parts", f"{number + 1}/7")
        assign(home, tmp_path / "assignments", f"{number + 1}/7")
    assert contents(tmp_path / "parts") == contents(home / "parts")
    assert contents(tmp_path / "assignments") == contents(home / "assignments")


def test_parts_and_assignments_in_an_object_store(home: Path, tmp_path: Path, store: str) -> None:
    for number in (2, 3, 1):
        encode(tars(home), f"{store}/parts", f"{number}/3")
    assert contents(f"{store}/parts") == contents(home / "parts")
    options: dict[str, Any] = {"clusterer": f"kmeans:n_clusters={K}", "points_per_cluster": 8, "progress": False}
    for _ in range(2):  # the second time replaces the first
        write_centroids(f"{store}/parts", f"{store}/centroids", **options)
    stored, local = contents(f"{store}/centroids"), contents(home / "centroids")
    assert stored.keys() == local.keys()
    assert all(stored[f"/{side}.npy"] == local[f"/{side}.npy"] for side in ("image", "text"))
    assign_parts(f"{store}/parts", f"{store}/centroids", f"{store}/assignments", task=Task(2, 2), progress=False)
    assert contents(f"{store}/assignments") == contents(home / "assignments")
    written = [
        write_given_labels(f"{place}/assignments", f"{place}/centroids/image.npy,{place}/centroids/text.npy", tmp_path / name)
        for place, name in ((home, "local"), (store, "stored"))
    ]
    assert written[0].manifest["assignments"] == written[1].manifest["assignments"]
    assert written[0].shards.sources == written[1].shards.sources
    with pytest.raises(ArtifactError, match=r"not made with the centroids memory://bucket/centroids/text\.npy"):
        write_given_labels(
            f"{store}/assignments", f"{store}/centroids/text.npy,{store}/centroids/image.npy", tmp_path / "other"
        )


def test_labels_know_the_tars_that_were_encoded(home: Path, tmp_path: Path) -> None:
    spec = ",".join(str(home / "centroids" / f"{side}.npy") for side in ("image", "text"))
    labels = write_given_labels(str(home / "assignments"), spec, tmp_path / "labels")
    expected = {Path(file).name: shard_source(file) for file in expand_urls(tars(home))}
    assert labels.shards.sources == expected


def test_tar_without_a_usable_sample_is_known_to_the_labels(tmp_path: Path) -> None:
    data = write_tars(tmp_path, N, shards=SHARDS)
    file = tmp_path / f"pairs-{SHARDS - 1:06d}.tar"
    file.write_bytes(file.read_bytes().replace(b"IHDR", b"IHDX"))
    encode(data, tmp_path / "parts", max_lost=0.5)
    write_centroids(
        tmp_path / "parts", tmp_path / "centroids", clusterer=f"kmeans:n_clusters={K}", max_lost=0.5, progress=False
    )
    assign(tmp_path, tmp_path / "assignments")
    spec = ",".join(str(tmp_path / "centroids" / f"{side}.npy") for side in ("image", "text"))
    labels = write_given_labels(str(tmp_path / "assignments"), spec, tmp_path / "labels", data=data)
    assert sorted(labels.shards.files) == sorted(path.name for path in tmp_path.glob("pairs-*.tar") if path != file)


def test_second_run_does_nothing(home: Path) -> None:
    times = {file: file.stat().st_mtime_ns for name in ("parts", "assignments") for file in (home / name).rglob("*")}
    for task in ("1/1", "2/3"):
        assert encode(tars(home), home / "parts", task) == TaskReport(SHARDS)
        assert assign(home, home / "assignments", task) == TaskReport(SHARDS)
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_sample_of_all_rows_gives_the_centroids_of_all_features(home: Path, tmp_path: Path) -> None:
    spec = f"kmeans:n_clusters={K}"
    write_centroids(home / "parts", tmp_path / "centroids", clusterer=spec, seed=3, progress=False)
    names = parts_folder(home / "parts").opened().names
    image, text = (
        torch.from_numpy(np.concatenate([np.load(home / "parts" / name / f"{side}.npy") for name in names]))
        for side in ("image", "text")
    )
    expected = cluster_features(image, text, clusterer=spec, seed=3)
    for side in ("image", "text"):
        centroids = np.load(tmp_path / "centroids" / f"{side}.npy")
        np.testing.assert_array_equal(centroids, getattr(expected, side).centroids.numpy())


def test_labels_are_the_nearest_centroids_of_numpy(home: Path, tmp_path: Path) -> None:
    files = {side: home / "centroids" / f"{side}.npy" for side in ("image", "text")}
    labels = write_given_labels(str(home / "assignments"), ",".join(map(str, files.values())), tmp_path / "labels")
    expected, rows = {}, {side: np.load(file).astype(np.float64) for side, file in files.items()}
    for name, (shard, keys) in zip(parts_folder(home / "parts").opened().names, keys_of(home).items(), strict=True):
        cosines = {}
        for side, centroids in rows.items():
            features = np.load(home / "parts" / name / f"{side}.npy").astype(np.float64)
            cosines[side] = (features @ centroids.T / np.linalg.norm(centroids, axis=1)).argmax(axis=1).tolist()
        expected[shard] = dict(zip(keys, zip(cosines["image"], cosines["text"], strict=True), strict=True))
    assert {shard: {key: value[:2] for key, value in labels.shards.of(shard).items()} for shard in expected} == expected
    assert labels.image.n_samples == N


def keys_of(home: Path) -> dict[str, list[str]]:
    size = N // SHARDS
    pairs = [pair[0] for pair in listings(N)]
    return {str(home / f"pairs-{shard:06d}.tar"): pairs[shard * size : (shard + 1) * size] for shard in range(SHARDS)}


def kill_after(calls: int, home: Path, folder: Path) -> None:
    """Encode or assign, and kill this process at the given copy of a file."""
    copy, counted = TaskFolder.copy, [0]

    def counting(*arguments: Any) -> None:
        counted[0] += 1
        if counted[0] > calls:
            os.kill(os.getpid(), signal.SIGKILL)
        copy(*arguments)

    TaskFolder.copy = counting  # type: ignore[method-assign]
    assign(home, folder) if folder.name == "assignments" else encode(tars(home), folder)


@pytest.mark.parametrize(("name", "calls"), [("parts", 4), ("parts", 9), ("assignments", 2)])
def test_killed_task_continues_where_it_was_killed(home: Path, tmp_path: Path, name: str, calls: int) -> None:
    killed = multiprocessing.get_context("fork").Process(target=kill_after, args=(calls, home, tmp_path / name))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    files_of_a_part = 3 if name == "parts" else 1
    again = encode(tars(home), tmp_path / name) if name == "parts" else assign(home, tmp_path / name)
    assert len(again.done) == SHARDS - calls // files_of_a_part
    assert contents(tmp_path / name) == contents(home / name)


@pytest.fixture
def unfinished(home: Path, tmp_path: Path) -> Path:
    """Return parts of which the last has only its samples, as after a kill, and a claim of task 2/2."""
    folder = shutil.copytree(home / "parts", tmp_path / "parts")
    name = parts_folder(folder).opened().names[-1]
    for file in ("part.json", "image.npy", "text.npy"):
        (folder / name / file).unlink()
    claim(folder, name)
    return folder


def claim(folder: Path, name: str, age: float = 0.0, task: str = "2/2") -> Path:
    file = folder / "claims" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"task": task, "host": "other", "time": time.time() - age}))
    return file


def test_part_of_a_living_task_is_left_to_it(home: Path, unfinished: Path) -> None:
    left = parts_folder(unfinished).opened().names[-1]
    assert encode(tars(home), unfinished, "1/2") == TaskReport(SHARDS, n_left=1, claimed=[left])
    with pytest.raises(ArtifactError, match=rf"1 of {SHARDS} parts of .* are not complete.*clip-negatives encode again"):
        write_centroids(unfinished, unfinished.parent / "c", clusterer="kmeans:n_clusters=4", progress=False)
    assert encode(tars(home), unfinished, "2/2") == report(unfinished, [SHARDS - 1])  # started again
    assert contents(unfinished) == contents(home / "parts")


@pytest.mark.parametrize("age", [claims.STALE + 1, -1e6])
def test_part_of_a_task_that_was_killed_is_taken_over_whatever_its_clock(home: Path, unfinished: Path, age: float) -> None:
    name = parts_folder(unfinished).opened().names[-1]
    file = claim(unfinished, name, age=age)
    assert encode(tars(home), unfinished, "1/2").done == [name]
    assert not file.exists()


def test_torn_claim_is_taken_over(home: Path, unfinished: Path) -> None:
    name = parts_folder(unfinished).opened().names[-1]
    (unfinished / "claims" / f"{name}.json").write_text('{"task": "2')
    assert encode(tars(home), unfinished, "1/2").done == [name]


@pytest.mark.parametrize("url", ["parts", "memory://claims/parts"])
def test_only_one_of_two_tasks_gets_a_claim_and_renews_it(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEWED", 0.005)
    monkeypatch.setattr(claims, "STALE", 0.5)
    folder = TaskFolder.at(url if "://" in url else tmp_path / url, "parts", "").begun({}, ["a"])
    with claims.Claims(folder, "1/2").claimed("a") as first, claims.Claims(folder, "2/2").claimed("a") as second:
        assert (first, second) == (True, False)
        content = folder.read("claims/a.json")
        ends = time.monotonic() + 10
        while folder.read("claims/a.json") == content and time.monotonic() < ends:
            time.sleep(0.005)
        assert folder.read("claims/a.json") != content
    claims.Claims(folder, "1/2").release("a")
    with claims.Claims(folder, "2/2").claimed("a") as third:
        assert third


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe("pixels:size=8,dim=0", "hashing:dim=32"), "the encoder of the images was pixels:size=4, is pixels:size=8"),
        (Recipe("pixels:size=4,dim=0", "hashing:dim=8"), "the encoder of the texts was hashing:dim=32, is hashing:dim=8"),
        (Recipe(*RECIPE.encoders, feature_dtype="float16"), "the dtype of the features was float32, is float16"),
    ],
)
def test_tasks_with_other_settings_are_an_error(home: Path, recipe: Recipe, words: str) -> None:
    before = contents(home / "parts")
    with pytest.raises(ArtifactError, match=rf"begun with other settings: {words}\. Use the same"):
        encode(tars(home), home / "parts", recipe=recipe)
    assert contents(home / "parts") == before


def test_other_data_are_an_error(home: Path) -> None:
    with pytest.raises(ArtifactError, match="the parts of the data differ"):
        encode(str(home / "pairs-000000.tar"), home / "parts")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe("pixels", "hashing"), "pixels:size=16,dim=64 learns from all data.*pixels:dim=0 with image_encoder="),
        (Recipe("pixels:dim=0"), "tfidf:dim=64 learns from all data.*hashing with text_encoder="),
    ],
)
def test_encoders_that_learn_are_an_error(home: Path, tmp_path: Path, recipe: Recipe, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        encode(tars(home), tmp_path / "parts", recipe=recipe)
    assert not (tmp_path / "parts").exists()


def test_folder_with_foreign_files_is_an_error(home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"has files, but no plan\.json"):
        encode(tars(home), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_tar_that_is_named_twice_is_an_error(home: Path, tmp_path: Path) -> None:
    tar = home / "pairs-000000.tar"
    with pytest.raises(DataError, match=r"pairs-000000.tar is named twice. Name each tar once"):
        encode(f"{tar}::{tar}", tmp_path / "parts")


def test_table_without_tars_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("image,text\na.png,a\n")
    with pytest.raises(DataError, match=r"does not name the tars of its samples.*shard"):
        encode(str(tmp_path / "pairs.csv"), tmp_path / "parts")


def test_table_that_names_tars_gives_the_labels_of_its_rows(home: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(write_csv(tmp_path, 24), sep="\t")
    frame["uid"], frame["tar"] = [f"{row:04d}" for row in range(24)], [f"{row // 12:05d}.tar" for row in range(24)]
    frame.to_csv(tmp_path / "named.csv", index=False, sep="\t")
    columns = Columns(key="uid", shard="tar")
    recipe = Recipe(*RECIPE.encoders, columns=columns)
    assert len(encode(tmp_path / "named.csv", tmp_path / "parts", recipe=recipe, max_lost=0).done) == 1
    write_centroids(tmp_path / "parts", tmp_path / "centroids", clusterer="kmeans:n_clusters=3", progress=False)
    assign(tmp_path, tmp_path / "assignments")
    files = ",".join(str(tmp_path / "centroids" / f"{side}.npy") for side in ("image", "text"))
    labels = write_given_labels(str(tmp_path / "assignments"), files, tmp_path / "labels")
    assert [len(labels.shards.of(f"{shard:05d}.tar")) for shard in range(2)] == [12, 12]


def test_missing_and_torn_tars_do_not_stop_a_task(home: Path, tmp_path: Path) -> None:
    for shard in range(3):
        shutil.copy(home / f"pairs-{shard:06d}.tar", tmp_path)
    torn, gone = tmp_path / "pairs-000000.tar", tmp_path / "pairs-000001.tar"
    whole = {file: file.read_bytes() for file in (torn, gone)}
    torn.write_bytes(whole[torn][: len(whole[torn]) // 2])
    gone.unlink()
    data, parts = str(tmp_path / "pairs-{000000..000002}.tar"), tmp_path / "parts"
    first = encode(data, parts)
    assert (len(first.done), first.n_left, len(first.faults)) == (3, 0, 2)
    assert re.search(r"pairs-000001.tar does not exist.*max_missing_shards=1", first.faults[0])
    assert re.search(r"samples \(.*are lost.*1 torn tar", first.faults[1])
    options: dict[str, Any] = {"clusterer": "kmeans:n_clusters=2", "progress": False}
    with pytest.raises(DataError, match=r"pairs-000001.tar does not exist"):
        write_centroids(parts, tmp_path / "centroids", **options)
    with pytest.raises(DataError, match=r"are lost, more than .* run clip-negatives encode again"):
        write_centroids(parts, tmp_path / "centroids", **options, max_missing_shards=1)
    accepted = encode(data, parts, max_lost=0.9, max_missing_shards="50%")
    assert (accepted.faults, len(accepted.warnings)) == ([], 2)
    write_centroids(parts, tmp_path / "centroids", **options, max_missing_shards=1, max_lost=0.9)
    assign(tmp_path, tmp_path / "assignments")
    before = contents(tmp_path / "assignments")
    for file, content in whole.items():
        file.write_bytes(content)
    assert encode(data, parts) == TaskReport(3, list(parts_folder(parts).opened().names[:2]))
    assert len(assign(tmp_path, tmp_path / "assignments").done) == 2  # of the two parts that changed
    assert contents(tmp_path / "assignments") != before
    tables = (tmp_path / "assignments").rglob("*.parquet")
    assert sum(pq.read_metadata(file).num_rows for file in tables) == 3 * N // SHARDS


def test_part_that_cannot_be_encoded_does_not_stop_the_task(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_negatives.pipelines import encoded_parts

    whole = encoded_parts.encode_images

    def fail_once(part: Any, *rest: Any) -> None:
        if part.name.endswith("000001.tar"):
            raise DataError("The encoder gives NaN.")
        whole(part, *rest)

    with monkeypatch.context() as patches:
        patches.setattr(encoded_parts, "encode_images", fail_once)
        failed = encode(tars(home), tmp_path / "parts", "1/2")
        assert (len(failed.done), failed.n_left, failed.faults) == (SHARDS - 1, 1, ["The encoder gives NaN."])
    assert len(encode(tars(home), tmp_path / "parts", "1/2").done) == 1  # after the repair, the same task tries again
    assert contents(tmp_path / "parts") == contents(home / "parts")


def test_tar_that_changed_is_encoded_again(tmp_path: Path) -> None:
    data = write_tars(tmp_path, 8, shards=2)
    encode(data, tmp_path / "parts")
    os.utime(tmp_path / "pairs-000001.tar", ns=(0, 0))
    assert len(encode(data, tmp_path / "parts").done) == 1
    (tmp_path / "pairs-000000.tar").unlink()
    assert encode(data, tmp_path / "parts") == TaskReport(2)  # a part stays without its tar


def test_damaged_parts_are_not_complete(home: Path, tmp_path: Path) -> None:
    parts = shutil.copytree(home / "parts", tmp_path / "parts")
    name = parts_folder(parts).opened().names[2]
    with (parts / name / "text.npy").open("ab") as stream:
        stream.write(b"x")
    shutil.copytree(home / "centroids", tmp_path / "centroids")
    failed = assign(tmp_path, tmp_path / "assignments")
    assert (failed.n_left, len(failed.faults)) == (1, 1)
    assert f"Part {name} of " in failed.faults[0]
    files = ",".join(str(tmp_path / "centroids" / f"{side}.npy") for side in ("image", "text"))
    with pytest.raises(ArtifactError, match=rf"1 of {SHARDS} parts of .*assignments are not complete.*clip-negatives assign"):
        write_given_labels(str(tmp_path / "assignments"), files, tmp_path / "labels")
    assert encode(tars(home), parts).done == [name]
    assert assign(tmp_path, tmp_path / "assignments").done == [name]
    assert contents(tmp_path / "assignments") == contents(home / "assignments")


@pytest.mark.parametrize("change", [{"count": 3}, {"torn": "x"}, {"digest": None}])
def test_part_with_a_changed_record_is_written_again(home: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    parts = shutil.copytree(home / "parts", tmp_path / "parts")
    name = parts_folder(parts).opened().names[1]
    record = json.loads((parts / name / "part.json").read_text())
    (parts / name / "part.json").write_text(json.dumps({**record, **change}))
    assert encode(tars(home), parts).done == [name]
    assert contents(parts) == contents(home / "parts")


def test_same_relative_names_in_another_directory_are_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_tars(tmp_path / name, 4, shards=2)
    monkeypatch.chdir(tmp_path / "one")
    encode("pairs-{000000..000001}.tar", tmp_path / "parts", "1/2")
    encode(f"{tmp_path}/one/pairs-{{000000..000001}}.tar", tmp_path / "parts", "2/2")
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(ArtifactError, match="the parts of the data differ"):
        encode("pairs-{000000..000001}.tar", tmp_path / "parts", "2/2")


def test_damaged_features_of_the_same_size_are_an_error(home: Path, tmp_path: Path) -> None:
    parts = shutil.copytree(home / "parts", tmp_path / "parts")
    names = parts_folder(parts).opened().names
    rows = np.load(parts / names[1] / "text.npy", mmap_mode="r+")
    rows[3, 5] = np.nan
    rows.flush()
    with (parts / names[4] / "image.npy").open("r+b") as stream:
        stream.write(b"xxxxxx")
    shutil.copytree(home / "centroids", tmp_path / "centroids")
    failed = assign(tmp_path, tmp_path / "assignments")
    assert (failed.n_left, len(failed.faults)) == (2, 2)
    for name, fault, words in zip((names[1], names[4]), failed.faults, ("a feature is NaN or infinite", ""), strict=True):
        assert re.search(
            rf"Part {name} of .* is damaged: {words}.*Remove its folder, and run clip-negatives encode again", fault
        )
        shutil.rmtree(parts / name)
    assert encode(tars(home), parts).done == [names[1], names[4]]
    assert len(assign(tmp_path, tmp_path / "assignments").done) == 2
    assert contents(tmp_path / "assignments") == contents(home / "assignments")


def test_part_that_is_encoded_again_while_it_is_assigned_is_not_assigned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_negatives.pipelines import assigned_parts

    data = write_tars(tmp_path, 8, shards=1)
    encode(data, tmp_path / "parts")
    write_centroids(tmp_path / "parts", tmp_path / "centroids", clusterer="kmeans:n_clusters=2", progress=False)
    whole = assigned_parts.nearest
    with monkeypatch.context() as patches:

        def encode_meanwhile(*arguments: Any) -> Any:
            os.utime(tmp_path / "pairs-000000.tar", ns=(0, 0))
            encode(data, tmp_path / "parts")
            return whole(*arguments)

        patches.setattr(assigned_parts, "nearest", encode_meanwhile)
        failed = assign(tmp_path, tmp_path / "assignments")
        assert (failed.done, failed.n_left) == ([], 1)
        assert "changed while it was read. Run this command again." in failed.faults[0]
    assert len(assign(tmp_path, tmp_path / "assignments").done) == 1


def test_centroids_of_other_parts_are_an_error(home: Path, tmp_path: Path) -> None:
    encode(tars(home), tmp_path / "parts", recipe=Recipe("pixels:size=2,dim=0", "hashing:dim=8"))
    with pytest.raises(ArtifactError, match="has the centroids of other features"):
        assign_parts(tmp_path / "parts", home / "centroids", tmp_path / "assignments", progress=False)
    assert not (tmp_path / "assignments").exists()


def test_assignments_by_other_centroids_are_an_error(home: Path, tmp_path: Path) -> None:
    write_centroids(home / "parts", tmp_path / "centroids", clusterer="kmeans:n_clusters=3", progress=False)
    with pytest.raises(ArtifactError, match=r"begun with other settings: the centroids of the images differ"):
        assign_parts(home / "parts", tmp_path / "centroids", home / "assignments", progress=False)
    files = ",".join(str(tmp_path / "centroids" / f"{side}.npy") for side in ("image", "text"))
    with pytest.raises(ArtifactError, match="was not made with the centroids"):
        write_given_labels(str(home / "assignments"), files, tmp_path / "labels")


def test_damaged_centroids_are_an_error(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "centroids", tmp_path / "centroids")
    (tmp_path / "centroids" / "text.npy").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="is damaged: a file is missing, or changed"):
        assign_parts(home / "parts", tmp_path / "centroids", tmp_path / "assignments", progress=False)
    with pytest.raises(ArtifactError, match=r"is not a centroids folder: no centroids\.json"):
        assign_parts(home / "parts", tmp_path, tmp_path / "assignments", progress=False)


def test_clusterer_without_a_number_of_clusters_is_an_error(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clusterer= kmeans does not set the number of clusters.*kmeans:n_clusters=NUMBER"):
        write_centroids(home / "parts", tmp_path / "centroids", clusterer="kmeans", progress=False)


def test_clusterer_with_a_limit_that_assign_does_not_keep_is_an_error(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"limits clusters by max_share, but assign takes the nearest.*clip-negatives prepare"):
        write_centroids(home / "parts", tmp_path / "c", clusterer="kmeans:n_clusters=4,max_share=0.3", progress=False)


@pytest.mark.parametrize("counts", [[7], [10, 0, 20, 10], [1] * 30, [50, 1, 1, 0, 13], [0, 0, 5]])
def test_each_part_gives_its_share_of_the_sample(counts: list[int]) -> None:
    for size in range(1, sum(counts) + 1):
        drawn = quotas(counts, size)
        assert sum(drawn) == size
        for number, (count, quota) in enumerate(zip(counts, drawn, strict=True)):
            assert abs(quota - size * count / sum(counts)) < 1
            rows = drawn_rows(count, quota, 0, number)
            assert len(set(rows.tolist())) == quota
            assert set(rows.tolist()) <= set(range(count))


@pytest.mark.parametrize("gap", [0, 300, 2**16])
def test_rows_of_an_object_store_are_those_of_the_file(gap: int, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_rows, "GAP_BYTES", gap)
    folder = TaskFolder.at(store, "parts", "").begun({}, ["a"])
    values = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float16)
    with fsspec.open(f"{store}/a/image.npy", "wb") as stream:
        np.save(stream, values)
    rows = np.array([0, 1, 5, 40, 41, 99])
    np.testing.assert_array_equal(read_rows(folder, "a", "image", rows), values[rows])
    with pytest.raises(ArtifactError, match=r"image\.npy of part a .* cannot be read"):
        read_rows(folder, "a", "image", np.array([100]))
