"""Count the false negatives of each method: python benchmarks/rank1/pairs.py --output FILE.

Nothing is trained. The counts are of the batches of the test's training listings, and of the log-weights before normalisation.
A pair of two listings of one item is a false negative.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from folds import Fold, batch_size
from run import write_json
from studies import parse
from torch import Tensor

from clip_negatives import Method, SamplingContext
from clip_negatives.clustering.similarity import pair_counts
from clip_negatives.interfaces import Clustering
from clip_negatives.metrics import FalseNegatives

METHODS = ("in_batch", "random_reduction", "default", "paper", "gate2:image_quantile=0.99,text_quantile=0.99")
"""Methods whose weights do not depend on the model."""

BATCHES = 20


def counted(study: dict[str, Any], data: str, fold: Fold, name: str) -> dict[str, float]:
    """Return the false negatives of an anchor, their weight, and the removed pairs."""
    method, clusters = Method.parse(name), fold.clusters
    size = min(batch_size(study, data), clusters.n_samples)
    sampler = method.create_sampler(SamplingContext.of(clusters, size, captions=fold.captions))
    terms = method.create_weighting()(clusters)
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
    """Count the pairs and write the result file."""
    options, study = parse(argparse.ArgumentParser(description=__doc__))
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
    write_json(options.output, {"data": result})


if __name__ == "__main__":
    main()
