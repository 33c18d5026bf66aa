"""Train linear heads on frozen features with one method, and rank the queries of a fold."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from folds import Fold, batch_size
from run import forget_peak, memory_mib
from scores import ranks

from clip_negatives import Clusters, Method, Recipe
from clip_negatives.clustering.fit import cluster_features
from clip_negatives.heads import HeadSettings, LinearHeads, train_heads


@dataclass(frozen=True)
class Job:
    """One run."""

    data: str  # name of the data set in the study
    fold: str  # "validation" or "test"
    method: str  # spec of the method, as `clip-negatives compare` takes it
    lr: float  # learning rate
    seed: int  # seed of heads and batches
    dropout: float = 0.0  # of the frozen features


def train(
    study: dict[str, Any], fold: Fold, job: Job, watch: Callable[[int, LinearHeads], None] = lambda step, heads: None
) -> dict[str, Any]:
    """Train two linear heads with one method and return the rank of the item of each query in both directions.

    `watch` is called with the number of finished steps and the heads, before the first step and after each.
    """
    setting = study["data"][job.data]
    settings = HeadSettings(job.lr, study["steps"], batch_size(study, job.data), study["dim"], dropout=job.dropout)
    forget_peak()
    started = first_step = time.perf_counter()

    def on_step(step: int, heads: LinearHeads) -> None:
        nonlocal first_step
        if step == 0:
            first_step = time.perf_counter()
        watch(step, heads)

    def refresh(heads: LinearHeads, epoch: int) -> Clusters | None:
        return clusters_of(heads, fold, setting, job.seed, epoch) if epoch % setting["refresh"] == 0 else None

    heads = train_heads(
        fold.clusters,
        Method.parse(job.method),
        settings,
        seed=job.seed,
        captions=fold.captions,
        refresh=refresh if setting.get("refresh") else None,
        on_step=on_step,
    )
    seconds = (time.perf_counter() - first_step) / study["steps"]
    with torch.no_grad():
        images, texts = heads.embed(fold.query_images, fold.query_texts)
        s = texts @ images.T
    return {
        "text_to_image": ranks(s),
        "image_to_text": ranks(s.T),
        "seconds_per_step": seconds,
        "prepare_seconds": first_step - started,
        "clustering_seconds": fold.clustering_seconds,
        "peak_memory_mib": memory_mib(),
        "temperature": heads.temperature,
    }


def clusters_of(heads: LinearHeads, fold: Fold, setting: dict[str, Any], seed: int, epoch: int) -> Clusters:
    """Cluster the embeddings of the training data."""
    old = fold.clusters
    images, texts = (old.features_of(name, "A linear head") for name in ("image", "text"))
    clusterer = setting.get("clusterer", Recipe.clusterer)
    new = cluster_features(*heads.embed(images, texts), clusterer=clusterer, seed=seed, epoch=epoch)
    return replace(new, texts=old.texts, groups=old.groups)
