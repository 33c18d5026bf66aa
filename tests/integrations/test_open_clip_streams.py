"""Training on webdataset streams: weights by shard and key, by labels in the stream, and as csv would have them."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip_train.data
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clip_negatives import read_clusters, write_clusters
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ArtifactError, ClipNegativesError, UnsupportedError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.pipelines.given_labels import write_given_labels
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.step import BatchSamples
from clip_negatives.storage.labels_folder import write_labels
from clip_negatives_plugins.in_batch.sampler import InBatch
from tests import ranks

from .conftest import BATCH, ROWS, logged_losses

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
    seen: list[BatchSamples] = []
    options = TrainOptions(sampler="in_batch", on_batch=seen.append)
    train([*arguments, "--name", "run"], options)
    assert len(_losses(arguments, "run")) == ROWS // BATCH
    assert int(BatchSamples.concatenate(seen).ids.min()) >= 0
    for sampler in ("cluster_similarity", "swapped_words"):
        with pytest.raises(UnsupportedError, match="in_batch"):
            train([*arguments, "--name", "batches"], TrainOptions(sampler=sampler))
    assert not (Path(arguments[arguments.index("--logs") + 1]) / "batches").exists()


@pytest.mark.parametrize("kind", ["clusters", "labels"])
def test_other_tars_are_an_error_before_training(arguments: list[str], shards: str, tmp_path: Path, kind: str) -> None:
    """Tars with the keys of the clustered ones, under other names and under the same names."""
    folder = dict(zip(("clusters", "labels"), _labelled(shards, tmp_path), strict=True))[kind]
    (tmp_path / "copies").mkdir()
    first, second = (shards.replace("{000000..000001}", place) for place in ("000000", "000001"))
    names = {"other-0.tar": first, "other-1.tar": second, Path(first).name: second, Path(second).name: first}
    for name, tar in names.items():
        shutil.copy(tar, tmp_path / "copies" / name)
    options = TrainOptions(clusters=folder, sampler="in_batch")
    swapped = _of_stream(arguments, str(tmp_path / "copies" / Path(shards).name))
    with pytest.raises(ArtifactError, match=r"^The shard .*copies/test-000000.tar has \d+ bytes, but the clustered shard "):
        train([*swapped, "--name", "run"], options)
    if kind == "clusters":  # with a labels folder, samples of other shards have no labels
        other = _of_stream(arguments, str(tmp_path / "copies" / "other-{0..1}.tar"))
        with pytest.raises(ArtifactError, match=r"^The shard .*other-0.tar was not clustered: .* prepare again"):
            train([*other, "--name", "run"], options)
    assert not (tmp_path / "logs").exists()


def test_pipes_are_said_once(arguments: list[str], shards: str, tmp_path: Path) -> None:
    clusters, _ = _labelled(shards, tmp_path)
    names = [shards.replace("{000000..000001}", place) for place in ("000000", "000001")]
    piped = _of_stream(arguments, "::".join(f"pipe:cat {name}" for name in names))
    train([*piped, "--name", "run"], TrainOptions(clusters=clusters, sampler="in_batch"))
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    assert log.count("2 of 2 shards were not compared with the clustered shards") == 1


def _with_texts_exchanged(shards: str, folder: Path) -> str:
    """Write copies of tars in which the first two samples have exchanged their texts, and return their list."""
    folder.mkdir()
    for place in ("000000", "000001"):
        with tarfile.open(shards.replace("{000000..000001}", place)) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        first, second = [name for name in files if name.endswith(".txt")][:2]
        files[first], files[second] = files[second], files[first]
        with tarfile.open(folder / Path(shards.replace("{000000..000001}", place)).name, "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(folder / Path(shards).name)


@pytest.mark.parametrize("kind", ["clusters", "labels"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_other_text_under_a_known_key_stops(arguments: list[str], shards: str, tmp_path: Path, kind: str, workers: str) -> None:
    """The size of a shard that comes from a command is unknown, so nothing was compared before."""
    folder = dict(zip(("clusters", "labels"), _labelled(shards, tmp_path), strict=True))[kind]
    exchanged = _with_texts_exchanged(shards, tmp_path / "exchanged")
    names = [exchanged.replace("{000000..000001}", place) for place in ("000000", "000001")]
    piped = _of_stream(arguments, "::".join(f"pipe:cat {name}" for name in names))
    with pytest.raises(ArtifactError, match=r"^The text of the sample '\S+' of pipe:cat .* is not the one that was clustered"):
        train([*piped, "--name", "run", "--workers", workers], TrainOptions(clusters=folder, sampler="in_batch"))


def test_clusters_of_csv_identify_no_sample_of_a_tar(
    arguments: list[str], train_csv: Path, shards: str, tmp_path: Path
) -> None:
    prepare(open_pairs(str(train_csv)), tmp_path / "clusters", progress=False)
    options = TrainOptions(clusters=tmp_path / "clusters", sampler="in_batch")
    with pytest.raises(ArtifactError, match="were made from a csv file, so they identify no sample of a tar"):
        train([*_of_stream(arguments, shards), "--name", "run"], options)


def test_samples_that_could_not_be_clustered_are_left_out(
    arguments: list[str], shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("CLIP_NEGATIVES_LIMITS", "characters=60")
        folder = prepare(open_pairs(shards), tmp_path / "clusters", progress=False, max_lost=1.0)
    broken = set(folder.broken["key"].to_pylist())
    assert 0 < len(broken) < ROWS - BATCH
    seen: list[BatchSamples] = []
    options = TrainOptions(clusters=tmp_path / "clusters", sampler="in_batch", on_batch=seen.append)
    train([*_of_stream(arguments, shards), "--name", "run"], options)
    assert len(_losses(arguments, "run")) == ROWS // BATCH
    assert int(BatchSamples.concatenate(seen).ids.min()) >= 0


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


def _given(clusters: Path, output: Path) -> Path:
    """Return the labels folder of clusters that are given as a table and centroids."""
    stored = read_clusters(clusters)
    sides = {"image": stored.clusters.image, "text": stored.clusters.text}
    columns = {f"{name}_cluster": pa.array(side.labels.numpy()) for name, side in sides.items()}
    table = pa.table(columns | {name: stored.samples[name] for name in ("shard", "key")})
    pq.write_table(table, f"{output}.parquet")
    for name, side in sides.items():
        np.save(f"{output}-{name}.npy", side.centroids.numpy())
    return write_given_labels(f"{output}.parquet", f"{output}-image.npy,{output}-text.npy", output).path


def test_labels_of_a_stream_serve_as_its_clusters_do(
    arguments: list[str], shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that come with the samples, keys that are looked up, and csv by index: one loss for the same batches."""
    clusters, labels = _labelled(shards, tmp_path)
    for size in ("SIZE", "INITIAL"):  # open_clip shuffles samples by the time of day
        monkeypatch.setattr(f"open_clip_train.data._SAMPLE_SHUFFLE_{size}", 1)
    arguments += WHOLE
    stream = _of_stream(arguments, shards)
    seen: dict[str, list[BatchSamples]] = {"keys": [], "labels": [], "given": []}
    for name, folder in (("keys", clusters), ("labels", labels), ("given", _given(clusters, tmp_path / "given"))):
        train([*stream, "--name", name], TrainOptions(clusters=folder, sampler="in_batch", on_batch=seen[name].append))
    of = read_clusters(clusters).clusters
    for known, labelled, given in zip(*seen.values(), strict=True):
        assert torch.equal(given.labels, labelled.labels)
        assert torch.equal(labelled.labels, torch.stack([of.image.labels[known.ids], of.text.labels[known.ids]], dim=1))
    batches = [samples.ids.tolist() for samples in seen["keys"]]
    monkeypatch.setattr("clip_negatives_plugins.in_batch.sampler.InBatch.__iter__", lambda self: iter(batches))
    train([*arguments, "--name", "csv"], TrainOptions(clusters=_of_csv(clusters, tmp_path / "csv"), sampler="in_batch"))
    losses = {name: _losses(stream, name) for name in (*seen, "csv")}
    assert losses["given"] == losses["labels"] == losses["keys"]
    assert losses["csv"] == pytest.approx(losses["keys"], abs=2e-5)
    train([*stream, "--name", "plain"], TrainOptions(sampler="in_batch", weighting="uniform"))
    assert _losses(stream, "plain") != losses["keys"]


def test_samples_without_labels_count_as_they_are(
    arguments: list[str], shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels of one of two shards: half of the samples have none, and training goes on and says how many."""
    _, labels = _labelled(shards.replace("{000000..000001}", "000001"), tmp_path)
    stream = _of_stream(arguments, shards)
    seen: list[BatchSamples] = []
    options = TrainOptions(clusters=labels, sampler="in_batch", on_batch=seen.append)
    train([*stream, "--name", "half"], options)
    assert int((BatchSamples.concatenate(seen).labels < 0).all(dim=1).sum()) == ROWS // 2
    assert f"{ROWS // 2} samples so far have no cluster labels" in caplog.text


def test_labels_are_refused_where_they_do_not_serve(arguments: list[str], shards: str, tmp_path: Path) -> None:
    _, labels = _labelled(shards, tmp_path)
    with pytest.raises(ArtifactError, match="is a labels folder, not a clusters folder"):
        train([*arguments, "--name", "csv"], TrainOptions(clusters=labels))
    stream = [*_of_stream(arguments, shards), "--name", "run"]
    for weighting, reason in (
        ("weighted_infonce:similarity=sample", "features"),
        ("id_mask:by=image_cluster", "it has groups for each sample"),
        ("gist", "features|all logits"),
        ("random_reduction", "labels that come with a stream"),
        ("random_reduction:share=0.2", "has labels of its own"),
        ("margin", "same_text=false"),
    ):
        with pytest.raises(ClipNegativesError, match=reason):
            train(stream, TrainOptions(clusters=labels, sampler="in_batch", weighting=weighting))
    next(labels.glob("shards/*.parquet")).write_bytes(b"damaged")
    for workers in ("0", "1"):
        with pytest.raises(ArtifactError, match=r"^The labels .* cannot be read: changed after it was written"):
            train([*stream[:-1], f"run-{workers}", "--workers", workers], TrainOptions(clusters=labels, sampler="in_batch"))


def _train_on_this_rank(clusters: Path, seen: Path, arguments: list[str]) -> None:
    """Train with these clusters; the first run stores the batches of each process, and one of csv takes them."""
    torch.set_num_threads(1)
    batches, taken = seen / f"{os.environ['RANK']}.pt", []
    options = TrainOptions(clusters=clusters, sampler="in_batch", on_batch=lambda samples: taken.append(samples.ids.tolist()))
    if batches.exists():
        options = replace(options, on_batch=None)
    if "csv" in arguments:
        InBatch.__iter__ = lambda self: iter(torch.load(batches))
    for size in ("SIZE", "INITIAL"):  # open_clip shuffles samples by the time of day
        setattr(open_clip_train.data, f"_SAMPLE_SHUFFLE_{size}", 1)
    train(arguments, options)
    if taken:
        torch.save(taken, batches)


def test_two_processes_learn_what_they_learn_of_csv(arguments: list[str], shards: str, tmp_path: Path) -> None:
    """The same batches on two processes: keys that are looked up, labels that come with the samples, csv by index."""
    clusters, labels = _labelled(shards, tmp_path)
    seen = tmp_path / "seen"
    seen.mkdir()
    arguments += [*WHOLE, "--dist-backend", "gloo"]
    stream, found = _of_stream(arguments, shards), {}
    for name, folder, line in (
        ("keys", clusters, stream),
        ("labels", labels, stream),
        ("csv", _of_csv(clusters, tmp_path / "csv"), arguments),
    ):
        ranks.run(2, _train_on_this_rank, folder, seen, [*line, "--name", name], log=tmp_path / "output" / name)
        found[name] = _losses(line, name)
    assert len(found["keys"]) == ROWS // BATCH // 2
    assert found["labels"] == found["keys"]
    assert found["csv"] == pytest.approx(found["keys"], abs=2e-5)
