"""Training stops if the data are not those that were clustered, and warns of data that may have changed."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pytest

from clip_negatives import write_clusters
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ArtifactError
from clip_negatives.integrations.open_clip import train
from clip_negatives.integrations.open_clip.command_line import check_arguments
from clip_negatives.integrations.open_clip.preflight import first_folder, try_plugins, warn_of_newer_data
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.storage.labels_folder import write_labels
from clip_negatives.training import same_data
from clip_negatives.training.same_data import warn_of_newer

MADE = {"created": "2026-01-02T03:04:05+00:00"}
SECONDS = 1767323045


def files_of(folder: Path, *times: float) -> list[str]:
    """Return files that changed at these times."""
    files = [folder / f"{place}.png" for place in range(len(times))]
    for file, changed in zip(files, times, strict=True):
        file.touch()
        os.utime(file, (changed, changed))
    return [str(file) for file in files]


def test_files_that_changed_later_are_counted_and_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = files_of(tmp_path, SECONDS - 9, SECONDS + 9, SECONDS + 0.9, SECONDS + 99)
    warn_of_newer(Path("clusters"), MADE, "images", [*files, "absent.png", "\0"])
    assert "2 of 6 checked images changed after the clusters in clusters were made" in caplog.text
    assert f"were made: {files[1]}, ..." in caplog.text


@pytest.mark.parametrize("manifest", [MADE, {}, {"created": "yesterday"}, {"created": None}, {"created": 7}])
def test_nothing_is_said_of_older_files_and_of_clusters_without_a_date(
    manifest: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    later = 0 if manifest is MADE else 99
    warn_of_newer(Path("clusters"), manifest, "images", files_of(tmp_path, SECONDS + later))
    warn_of_newer(Path("clusters"), manifest, "images", [])
    assert caplog.text == ""


def test_of_many_files_some_are_looked_at_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_data, "CHECKED_FILES", 4)
    assert same_data.spread(pa.array(list("abcdefghij"))) == list("adgj")
    assert same_data.spread(pa.chunked_array([["a", "a"], ["b", "a"]])) == ["a", "b"]
    assert same_data.spread(pa.array([], pa.string())) == []


def _told(arguments: list[str], clusters: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Return what is said of a training before it begins."""
    options = TrainOptions(clusters=clusters, sampler="in_batch")
    args = check_arguments(arguments, options)
    caplog.clear()
    warn_of_newer_data(first_folder(args, options), args)
    return caplog.text


def test_pictures_of_a_csv(arguments: list[str], train_csv: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header, *rows = train_csv.read_text().splitlines()
    picture = shutil.copy(rows[0].split("\t")[0], tmp_path / "first.png")
    data = tmp_path / "data.csv"
    data.write_text("\n".join([header, f"{picture}\t{rows[0].split(chr(9), 1)[1]}", *rows[1:]]))
    prepare(open_pairs(str(data)), tmp_path / "clusters", progress=False)
    arguments[arguments.index("--train-data") + 1] = str(data)
    assert _told(arguments, tmp_path / "clusters", caplog) == ""
    later = time.time() + 9
    os.utime(picture, (later, later))
    assert f"1 of 192 checked images changed after the clusters in {tmp_path / 'clusters'}" in _told(
        arguments, tmp_path / "clusters", caplog
    )
    train([*arguments, "--name", "run"], TrainOptions(clusters=tmp_path / "clusters"))
    assert "1 of 192 checked images" in (tmp_path / "logs" / "run" / "out.log").read_text()
    shutil.copy(rows[1].split("\t")[0], picture)
    os.utime(picture, (0, 0))  # as ``cp -a`` of an older file
    with pytest.raises(ArtifactError, match=r"^The image .*first\.png \(row 0 of .*clusters\) has \d+ bytes, but had \d+ when"):
        train([*arguments, "--name", "replaced"], TrainOptions(clusters=tmp_path / "clusters"))
    assert not (tmp_path / "logs" / "replaced").exists()


def test_images_that_change_within_the_cache(
    arguments: list[str], train_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached clusters are found by size and time; the content is compared too."""
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))
    header, *rows = train_csv.read_text().splitlines()
    picture = Path(shutil.copy(rows[0].split("\t")[0], tmp_path / "first.png"))
    data = tmp_path / "data.csv"
    data.write_text("\n".join([header, f"{picture}\t{rows[0].split(chr(9), 1)[1]}", *rows[1:]]))
    arguments[arguments.index("--train-data") + 1] = str(data)
    args = check_arguments(arguments, TrainOptions())
    try_plugins(first_folder(args, TrainOptions()), args, TrainOptions())
    times, content = picture.stat(), bytearray(picture.read_bytes())
    content[-1] ^= 1
    picture.write_bytes(content)
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ArtifactError, match=r"first\.png \(row 0 of .* has other content"):
        try_plugins(first_folder(args, TrainOptions()), args, TrainOptions())


def test_clusters_of_an_older_version_are_told_of(
    arguments: list[str], train_csv: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = prepare(open_pairs(str(train_csv)), tmp_path / "clusters", progress=False)
    write_clusters(tmp_path / "older", folder.clusters, folder.samples.drop_columns(["bytes"]), {})
    assert "has no sizes of images: they were not compared" in _told(arguments, tmp_path / "older", caplog)
    assert "not compared" not in _told(arguments, tmp_path / "clusters", caplog)


@pytest.mark.parametrize("labels", [False, True])
def test_tars(arguments: list[str], shards: str, tmp_path: Path, labels: bool, caplog: pytest.LogCaptureFixture) -> None:
    for tar in (shards.replace("{000000..000001}", place) for place in ("000000", "000001")):
        shutil.copy(tar, tmp_path)
    copies = str(tmp_path / Path(shards).name)
    prepare(open_pairs(copies), tmp_path / "clusters", progress=False)
    folder = tmp_path / "clusters"
    arguments[arguments.index("--train-data") + 1] = copies
    arguments[arguments.index("csv")] = "webdataset"
    arguments += ["--train-num-samples", "192"]
    assert _told(arguments, folder, caplog) == ""
    later = time.time() + 9
    os.utime(tmp_path / "test-000001.tar", (later, later))
    if labels:  # written once the tar has changed, of the clusters of before
        folder = tmp_path / "labels"
        write_labels(tmp_path / "clusters", folder)
        times = json.loads((folder / "labels.json").read_text())
        assert times["clusters_created"] == json.loads((tmp_path / "clusters" / "manifest.json").read_text())["created"]
    assert "1 of 2 checked tars changed after the clusters" in _told(arguments, folder, caplog)
