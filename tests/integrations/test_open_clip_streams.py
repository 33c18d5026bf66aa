"""Training on webdataset streams: weights by key, by labels that come with the samples, and as csv would have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from clip_negatives import read_clusters, write_clusters
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ArtifactError, ClipNegativesError, UnsupportedError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.labels import write_labels
from clip_negatives.prepare import prepare

from .conftest import BATCH, ROWS, logged_losses

SCRIPT = """
import os, sys
from pathlib import Path
import open_clip_train.data
import torch
from clip_negatives.integrations.open_clip import TrainOptions, train

clusters, seen, *arguments = sys.argv[1:]
batches = Path(f"{seen}-{os.environ['RANK']}.pt")
options, taken = TrainOptions(clusters=Path(clusters), sampler="in_batch"), []
if "csv" in arguments:
    from clip_negatives_in_batch.sampler import InBatch
    InBatch.__iter__ = lambda self: iter(torch.load(batches))
elif not batches.exists():
    options = TrainOptions(clusters=Path(clusters), sampler="in_batch", on_batch=lambda index: taken.append(index.tolist()))
for size in ("SIZE", "INITIAL"):  # open_clip shuffles samples by the time of day
    setattr(open_clip_train.data, f"_SAMPLE_SHUFFLE_{size}", 1)
train(arguments, options)
if taken:
    torch.save(taken, batches)
"""
"""Train with these clusters; the first run keeps the batches of each process, and one of csv takes them."""


WHOLE = ["--aug-cfg", "scale=(1.0,1.0)"]
"""Whole pictures: what is cut out at random would differ between the loaders."""


def _losses(arguments: list[str], name: str) -> list[float]:
    log = Path(arguments[arguments.index("--logs") + 1]) / name / "out.log"
    return [float(text.split()[0]) for text in logged_losses(log)]


def _of_stream(arguments: list[str], shards: str) -> list[str]:
    """Return a command line over csv as one over shards."""
    place = arguments.index("--train-data")
    data = ["--train-data", shards, "--dataset-type", "webdataset", "--train-num-samples", str(ROWS)]
    return [*arguments[:place], *data, *arguments[place + 4 :]]


def test_webdataset_weights_by_key(arguments: list[str], shards: str) -> None:
    arguments = _of_stream(arguments, shards)
    seen: list[Tensor] = []
    options = TrainOptions(sampler="in_batch", on_batch=seen.append)
    train([*arguments, "--name", "run"], options)
    assert len(_losses(arguments, "run")) == ROWS // BATCH
    assert int(torch.cat(seen).min()) >= 0
    for sampler in ("cluster_similarity", "swapped_words"):
        with pytest.raises(UnsupportedError, match="in_batch"):
            train([*arguments, "--name", "batches"], TrainOptions(sampler=sampler))
    assert not (Path(arguments[arguments.index("--logs") + 1]) / "batches").exists()


def _labelled(shards: str, folder: Path) -> tuple[Path, Path]:
    """Return a clusters folder of two tars, and its labels folder."""
    prepare(open_pairs(shards), folder / "clusters")
    write_labels(folder / "clusters", folder / "labels")
    return folder / "clusters", folder / "labels"


def _of_csv(clusters: Path, output: Path) -> Path:
    """Return clusters of tars as those of the csv that lists the same pairs in the same order."""
    found = read_clusters(clusters)
    samples = found.samples.select(["text"]).add_column(0, "key", pa.array([str(row) for row in range(found.samples.num_rows)]))
    write_clusters(output, found.clusters, samples, {})
    return output


def test_labels_of_a_stream_serve_as_its_clusters_do(
    arguments: list[str], shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that come with the samples, keys that are looked up, and csv by index: one loss for the same batches."""
    clusters, labels = _labelled(shards, tmp_path)
    for size in ("SIZE", "INITIAL"):  # open_clip shuffles samples by the time of day
        monkeypatch.setattr(f"open_clip_train.data._SAMPLE_SHUFFLE_{size}", 1)
    arguments += WHOLE
    stream = _of_stream(arguments, shards)
    seen: dict[str, list[Tensor]] = {"keys": [], "labels": []}
    for name, folder in (("keys", clusters), ("labels", labels)):
        train([*stream, "--name", name], TrainOptions(clusters=folder, sampler="in_batch", on_batch=seen[name].append))
    of = read_clusters(clusters).clusters
    for index, pair in zip(seen["keys"], seen["labels"], strict=True):
        assert torch.equal(pair, torch.stack([of.image.labels[index], of.text.labels[index]], dim=1))
    batches = [index.tolist() for index in seen["keys"]]
    monkeypatch.setattr("clip_negatives_in_batch.sampler.InBatch.__iter__", lambda self: iter(batches))
    train([*arguments, "--name", "csv"], TrainOptions(clusters=_of_csv(clusters, tmp_path / "csv"), sampler="in_batch"))
    losses = {name: _losses(stream, name) for name in ("keys", "labels", "csv")}
    assert losses["labels"] == losses["keys"]
    assert losses["csv"] == pytest.approx(losses["keys"], abs=2e-5)
    train([*stream, "--name", "plain"], TrainOptions(sampler="in_batch", weighting="uniform"))
    assert _losses(stream, "plain") != losses["keys"]


def test_samples_without_labels_count_as_they_are(
    arguments: list[str], shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels of one of two shards: half of the samples have none, and training goes on and says how many."""
    _, labels = _labelled(shards.replace("{000000..000001}", "000001"), tmp_path)
    stream = _of_stream(arguments, shards)
    seen: list[Tensor] = []
    options = TrainOptions(clusters=labels, sampler="in_batch", on_batch=seen.append)
    train([*stream, "--name", "half"], options)
    assert int((torch.cat(seen) < 0).all(dim=1).sum()) == ROWS // 2
    assert f"{ROWS // 2} samples so far had no labels" in caplog.text


def test_labels_are_refused_where_they_do_not_serve(arguments: list[str], shards: str, tmp_path: Path) -> None:
    _, labels = _labelled(shards, tmp_path)
    with pytest.raises(ArtifactError, match="got a labels folder, which is for training on webdataset"):
        train([*arguments, "--name", "csv"], TrainOptions(clusters=labels))
    stream = [*_of_stream(arguments, shards), "--name", "run"]
    for weighting, reason in (
        ("weighted_infonce:similarity=sample", "features"),
        ("id_mask:by=image_cluster", "groups of single samples"),
        ("gist", "features|all logits"),
        ("random_reduction", "labels that come with a stream"),
        ("random_reduction:share=0.2", "which has labels of its own"),
        ("margin", "same_text=false"),
    ):
        with pytest.raises(ClipNegativesError, match=reason):
            train(stream, TrainOptions(clusters=labels, sampler="in_batch", weighting=weighting))
    next(labels.glob("shards/*.parquet")).write_bytes(b"damaged")
    for workers in ("0", "1"):
        with pytest.raises(ArtifactError, match=r"^Expected the labels of a shard in .* got a file that was changed"):
            train([*stream[:-1], f"run-{workers}", "--workers", workers], TrainOptions(clusters=labels, sampler="in_batch"))


def test_two_processes_learn_what_they_learn_of_csv(arguments: list[str], shards: str, tmp_path: Path) -> None:
    """The same batches on two processes: keys that are looked up, labels that come with the samples, csv by index."""
    clusters, labels = _labelled(shards, tmp_path)
    script, seen = tmp_path / "script.py", tmp_path / "seen"
    script.write_text(SCRIPT)
    arguments += [*WHOLE, "--dist-backend", "gloo"]
    stream, found = _of_stream(arguments, shards), {}
    for name, folder, line in (
        ("keys", clusters, stream),
        ("labels", labels, stream),
        ("csv", _of_csv(clusters, tmp_path / "csv"), arguments),
    ):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
        command = [*launcher, str(script), str(folder), str(seen), *line, "--name", name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = _losses(line, name)
    assert len(found["keys"]) == ROWS // BATCH // 2
    assert found["labels"] == found["keys"]
    assert found["csv"] == pytest.approx(found["keys"], abs=2e-5)
