"""Measure a trained model: Rank@k on held-out pairs, and the false negatives of the batches that it saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_negatives import registry
from clip_negatives.anchors import AnchorLoss
from clip_negatives.artifacts import ClustersFolder, codes
from clip_negatives.compare.queries import Queries
from clip_negatives.dataset import open_pairs
from clip_negatives.encoders.open_clip import image_tower, text_tower
from clip_negatives.interfaces import LossTerms
from clip_negatives.meter import truth_of
from clip_negatives.metrics import FalseNegatives, RankAtK, chance_rank_at_k, first_correct

TOP_K = (1, 5, 10)
"""The k of Rank@k that a comparison reports."""


def ranks(model: str, checkpoint: Path, test: dict[str, Any]) -> tuple[dict[str, Any], Queries]:
    """Return Rank@k of a checkpoint on held-out pairs, in both directions, with what chance would give, and its answers.

    Any image of the queried item counts as correct: for text-to-image each text is a query and all images are the gallery,
    for image-to-text the other way around.

    Args:
        model: open_clip's name of the model.
        checkpoint: file that open_clip's training wrote.
        test: arguments of `clip_negatives.dataset.open_pairs`.
    """
    source = open_pairs(**test)
    n = len(source.keys)
    groups = codes(source.groups if source.groups is not None else source.texts)
    images = image_tower(model, str(checkpoint)).encode(list(source.images(0, n)))
    texts = text_tower(model, str(checkpoint)).encode(source.texts)
    metric = RankAtK(TOP_K)
    metric.update(images, texts, groups)
    found = {name: float(value) for name, value in metric.compute().items()}
    found |= {f"chance_rank_{k}": chance_rank_at_k(groups, groups, k) for k in TOP_K}
    return {**found, "queries": n}, Queries(*first_correct(texts, images, groups, groups))


def false_negatives(batches: Sequence[Tensor], folder: ClustersFolder, weighting: str) -> dict[str, Any]:
    """Return the false negatives of an anchor in these batches, before and after what the weighting removes.

    What counts as one is said by the groups of the data, or by equal texts where there are none. What is removed and
    what they weigh is None for a weighting that decides at each step; what they weigh also where there are none.
    """
    truth, groups = truth_of(folder)
    terms: LossTerms | AnchorLoss = registry.create("loss_weighting", weighting)(folder.clusters)
    known = isinstance(terms, LossTerms)
    metric = FalseNegatives()
    for index in batches:
        metric.update(groups[index], terms.take(index) if isinstance(terms, LossTerms) else None)
    found = {name: float(value) for name, value in metric.compute().items()}
    return {
        "false_negatives_truth": truth,
        "false_negatives_per_anchor": found["per_anchor"],
        "false_negatives_kept_per_anchor": found["per_anchor_kept"] if known else None,
        "false_weight": found["false_weight"] if known and not math.isnan(found["false_weight"]) else None,
        "removed_share": found["removed_share"] if known else None,
        "removed_false_share": found["removed_false_share"] if known else None,
    }


def peak_gpu_memory() -> float | None:
    """Return the peak GPU memory of this process in MiB, or None without a GPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
