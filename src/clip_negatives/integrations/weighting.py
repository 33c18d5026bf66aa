"""The loss weighting of a training run, refused where it would leave nothing to learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives import registry
from clip_negatives.anchors import AnchorLoss
from clip_negatives.errors import InputError
from clip_negatives.functional import pair_log_weights
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.kernels import log_weights
from clip_negatives.sampling import epoch_generator

ROWS = 256
"""Images of a batch that are looked at."""

DRAWN = 2**16
"""Incorrect pairs that are looked at; a weighting that keeps fewer than one in so many teaches nothing either."""


def loss_terms(weighting: str, clusters: Clusters | None) -> LossTerms | AnchorLoss:
    """Return what a weighting makes of clusters.

    An `AnchorLoss` decides at each step and is taken as it is.

    Args:
        weighting: ``name`` or ``name:key=value,...``.
        clusters: clusters of the data; None for a weighting that needs none.

    Raises:
        PluginError: the name or an option is unknown, or a value has the wrong type.
        InputError: it removes all incorrect pairs, so that the loss would be 0 and nothing learned.
    """
    terms: LossTerms | AnchorLoss = registry.create("loss_weighting", weighting)(clusters)
    if isinstance(terms, LossTerms) and not keeps_pairs(terms):
        raise InputError(
            f"Expected a weighting that keeps incorrect pairs, got {weighting}, which removes all {DRAWN:,} that were drawn at "
            "random: the loss would be 0 and nothing learned. Lower what it removes, or make more clusters."
        )
    return terms


def keeps_pairs(terms: LossTerms) -> bool:
    """Return whether any of `DRAWN` incorrect pairs, drawn at random, is left in the loss."""
    n = terms.n_samples
    if n is None or n < 2:  # nothing belongs to a sample, or there is one
        return True
    generator = epoch_generator(0, 0)
    images = torch.randint(n, (DRAWN,), generator=generator)
    texts = (images + torch.randint(1, n, (DRAWN,), generator=generator)) % n
    kept = pair_log_weights(terms, images, texts) > -torch.inf
    if terms.groups is not None:
        # A group is pulled together, which is something to learn, or left out.
        same = terms.groups[images] == terms.groups[texts]
        kept = kept | same if terms.attract else kept & ~same
    return bool(kept.any())


def batch_keeps_pairs(terms: LossTerms, index: Tensor) -> bool:
    """Return whether any incorrect pair of a batch is left in the loss, by its first `ROWS` images.

    Args:
        terms: what a weighting makes of the clusters, on the CPU.
        index: samples of the batch, or of a stream the clusters of each, as `clip_negatives.loss.NegativesClipLoss` takes them.
    """
    n = len(index)
    if n < 2 or (terms.n_samples is None and not terms.by_label):
        return True
    batch = terms.with_labels(index) if terms.by_label else terms.take(index)
    rows = batch.map_samples(lambda part: part[:ROWS])
    kept = log_weights.block(rows, batch) > -torch.inf
    if batch.groups is not None and batch.attract:
        kept |= batch.groups[:ROWS, None] == batch.groups
    kept.fill_diagonal_(False)
    return bool(kept.any())
