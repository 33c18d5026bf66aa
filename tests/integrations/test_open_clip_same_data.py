"""Data that changed after the clusters were made of them are told of."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pytest

from clip_negatives.dataset import open_pairs
from clip_negatives.integrations.open_clip import same_data, train
from clip_negatives.integrations.open_clip.command_line import check_arguments
from clip_negatives.integrations.open_clip.preflight import read_folder
from clip_negatives.integrations.open_clip.same_data import tell_of_newer, tell_of_newer_data
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.open_clip.train_set import kind_of
from clip_negatives.labels import write_labels
from clip_negatives.prepare import prepare

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
    tell_of_newer(Path("clusters"), MADE, "pictures", [*files, "absent.png", "\0"])
    assert "2 of the 6 pictures that were looked at changed after the clusters in clusters were made" in caplog.text
    assert f"were made, {files[1]} among them" in caplog.text


@pytest.mark.parametrize("manifest", [MADE, {}, {"created": "yesterday"}, {"created": None}, {"created": 7}])
def test_nothing_is_said_of_older_files_and_of_clusters_without_a_date(
    manifest: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    later = 0 if manifest is MADE else 99
    tell_of_newer(Path("clusters"), manifest, "pictures", files_of(tmp_path, SECONDS + later))
    tell_of_newer(Path("clusters"), manifest, "pictures", [])
    assert caplog.text == ""


def test_of_many_files_some_are_looked_at_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_data, "LOOKED_AT", 4)
    assert same_data._some(pa.array(list("abcdefghij"))) == list("adgj")
    assert same_data._some(pa.chunked_array([["a", "a"], ["b", "a"]])) == ["a", "b"]
    assert same_data._some(pa.array([], pa.string())) == []


def _told(arguments: list[str], clusters: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Return what is said of a training before it begins."""
    args = check_arguments(arguments, TrainOptions(clusters=clusters, sampler="in_batch"))
    caplog.clear()
    tell_of_newer_data(read_folder(clusters, kind_of(args)), args)
    return caplog.text


def test_pictures_of_a_csv(arguments: list[str], train_csv: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header, *rows = train_csv.read_text().splitlines()
    picture = shutil.copy(rows[0].split("\t")[0], tmp_path / "first.png")
    data = tmp_path / "data.csv"
    data.write_text("\n".join([header, f"{picture}\t{rows[0].split(chr(9), 1)[1]}", *rows[1:]]))
    prepare(open_pairs(str(data)), tmp_path / "clusters", progress=False)
    arguments[arguments.index("--train-data") + 1] = str(data)
    assert _told(arguments, tmp_path / "clusters", caplog) == ""
    shutil.copy(rows[1].split("\t")[0], picture)
    later = time.time() + 9
    os.utime(picture, (later, later))
    assert f"1 of the 192 pictures that were looked at changed after the clusters in {tmp_path / 'clusters'}" in _told(
        arguments, tmp_path / "clusters", caplog
    )
    train([*arguments, "--name", "run"], TrainOptions(clusters=tmp_path / "clusters"))
    assert "1 of the 192 pictures" in (tmp_path / "logs" / "run" / "out.log").read_text()


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
    assert "1 of the 2 tars that were looked at changed after the clusters" in _told(arguments, folder, caplog)
