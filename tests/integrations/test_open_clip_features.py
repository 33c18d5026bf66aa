"""Training on clusters that were made from features that existed already: on tars and on csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clip_negatives import Columns, Recipe, read_clusters
from clip_negatives.dataset import TarPairs
from clip_negatives.errors import ArtifactError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.reshard import reshard
from clip_negatives.step import BatchSamples
from clip_negatives.storage.labels_folder import write_labels
from tests.pairs import write_clip_retrieval

from .conftest import BATCH, ROWS, logged_losses
from .test_open_clip_streams import _of_stream

RECIPE = Recipe(clusterer="kmeans:n_clusters=12")


def _embeddings(shards: str, folder: Path) -> Path:
    """Write what clip-retrieval writes about tars whose samples several workers read in turn."""
    encoded = prepare(shards, folder / "encoded", RECIPE, progress=False)
    tars = TarPairs(shards)
    order = np.arange(ROWS).reshape(2, -1).T.ravel()
    clusters = encoded.clusters
    assert clusters.image_features is not None
    assert clusters.text_features is not None
    features = {"image": clusters.image_features.numpy()[order], "text": clusters.text_features.numpy()[order]}
    columns = {
        "image_path": [tars.keys[row] for row in order],
        "caption": [tars.texts[row] for row in order],
        "tar": [Path(tars.shard_of[row]).name for row in order],
    }
    return write_clip_retrieval(folder / "embeddings", features, columns)


def test_training_on_the_tars(arguments: list[str], shards: str, tmp_path: Path) -> None:
    folder = _embeddings(shards, tmp_path)
    recipe = Recipe(clusterer=RECIPE.clusterer, columns=Columns(key="image_path", shard="tar"))
    made = prepare(folder, tmp_path / "clusters", recipe, features=folder, progress=False)
    write_labels(tmp_path / "clusters", tmp_path / "labels")
    with pytest.raises(ArtifactError, match=r"the samples of a tar do not stand together. Write a labels folder"):
        reshard(shards, tmp_path / "clusters", tmp_path / "resharded", samples_per_shard=64)
    assert reshard(shards, tmp_path / "labels", tmp_path / "resharded", samples_per_shard=64).samples == ROWS
    stream, tars = _of_stream(arguments, shards), TarPairs(shards)
    row_of = {(Path(shard).name, key): row for row, (shard, key) in enumerate(zip(tars.shard_of, tars.keys, strict=True))}
    identities = zip(made.samples["shard"].to_pylist(), made.samples["key"].to_pylist(), strict=True)
    assert [tars.texts[row_of[identity]] for identity in identities] == made.samples["text"].to_pylist()
    image, text = made.clusters.image.labels, made.clusters.text.labels
    for name in ("clusters", "labels"):
        seen: list[BatchSamples] = []
        options = TrainOptions(clusters=tmp_path / name, sampler="in_batch", on_batch=seen.append)
        train([*stream, "--name", name], options)
        assert len(logged_losses(tmp_path / "logs" / name / "out.log")) == ROWS // BATCH
        batch = BatchSamples.concatenate(seen)
        labels = batch.labels if name == "labels" else torch.stack([image[batch.ids], text[batch.ids]], dim=1)
        assert labels is not None
        assert sorted(map(tuple, labels.tolist())) == sorted(zip(image.tolist(), text.tolist(), strict=True))


def test_training_on_the_csv(arguments: list[str], train_csv: Path, tmp_path: Path) -> None:
    encoded = prepare(train_csv, tmp_path / "encoded", RECIPE, progress=False)
    for side in ("image", "text"):
        features = getattr(encoded.clusters, f"{side}_features")
        np.save(tmp_path / f"{side}.npy", features.numpy())
    spec = f"{tmp_path}/image.npy,{tmp_path}/text.npy"
    made = prepare(train_csv, tmp_path / "clusters", RECIPE, features=spec, progress=False)
    assert torch.equal(made.clusters.image.labels, encoded.clusters.image.labels)
    losses = []
    for name in ("encoded", "clusters"):
        train([*arguments, "--name", name], TrainOptions(clusters=tmp_path / name))
        losses.append([text.split()[0] for text in logged_losses(tmp_path / "logs" / name / "out.log")])
    assert losses[0] == losses[1]
    assert read_clusters(tmp_path / "clusters").clusters.image_features is None
