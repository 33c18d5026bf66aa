"""Count what methods do to the pairs of the study's data: python benchmarks/rank1/pairs.py --output FILE.

No training: the batches that each method composes of the test's training listings, and the log-weights that it gives their
pairs before any normalisation. A pair of two listings of one item is a false negative.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import tomllib
import torch
from folds import CACHE, Fold, batch_size
from head_training import method_of
from torch import Tensor

from clip_negatives import SamplingContext, registry
from clip_negatives.atomic import replaced_file
from clip_negatives.interfaces import Clustering
from clip_negatives.metrics import FalseNegatives
from clip_negatives.similarity import pair_counts

HERE = Path(__file__).parent
METHODS = ("in_batch", "random_reduction", "default", "paper", "gate2:image_quantile=0.99,text_quantile=0.99")
"""Methods whose weights do not depend on what the model thinks."""

BATCHES = 20
"""Batches that are looked at, of one epoch."""


def counted(study: dict[str, Any], data: str, fold: Fold, name: str) -> dict[str, float]:
    """Return the false negatives of an anchor, their weight, and what is removed."""
    method, clusters = method_of(name), fold.clusters
    size = min(batch_size(study, data), clusters.n_samples)
    context = SamplingContext(clusters.n_samples, size, clusters=clusters, captions=fold.captions)
    sampler = registry.create("negative_sampler", method.sampler, context)
    terms = registry.create("loss_weighting", method.weighting)(clusters)
    metric = FalseNegatives()
    for batch in itertools.islice(sampler, BATCHES):
        index = torch.tensor(batch)
        metric.update(clusters.groups[index], terms.take(index))
    found = {key: float(value) for key, value in metric.compute().items()}
    removed = found["removed_share"] * (size - 1)
    gone = found["per_anchor"] - found["per_anchor_kept"]
    return {**found, "removed_per_anchor": removed, "false_share_of_removed": gone / removed if removed else 0.0}


def spread(clustering: Clustering, similarity: Tensor) -> float:
    """Return the standard deviation of the similarity of the clusters of two samples, over all pairs of samples."""
    weight = pair_counts(clustering.sizes())
    weight = weight / weight.sum()
    mean = (weight * similarity).sum()
    return float((weight * (similarity - mean).square()).sum().sqrt())


def main() -> None:
    """Count, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=HERE / "heads.toml")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of features")
    options = parser.parse_args()
    study = tomllib.loads(options.study.read_text()) | {"cache": str(options.cache)}
    result = {}
    for data in study["data"]:
        fold = Fold.of(study, data, "test")
        rows = {name: counted(study, data, fold, name) for name in METHODS}
        clusters = fold.clusters
        spreads = {
            "image": spread(clusters.image, clusters.image_similarity),
            "text": spread(clusters.text, clusters.text_similarity),
        }
        result[data] = {"batch_size": batch_size(study, data), "spread": spreads, "methods": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(options.output) as partial:
        partial.write_text(json.dumps({"data": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
