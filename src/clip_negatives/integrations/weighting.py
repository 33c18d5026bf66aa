"""The loss weighting of a training run, refused where it would leave nothing to learn from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives import registry
from clip_negatives.anchors import AnchorLoss, Where, anchors
from clip_negatives.errors import InputError
from clip_negatives.functional import pair_log_weights
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.kernels import log_weights
from clip_negatives.sampling import epoch_generator

ROWS = 256
"""Samples that a loss is tried on, and images of a batch that are looked at."""

DIM, SCALE = 32, 14.3
"""Size of random features, and the logit scale that open_clip starts from."""

DRAWN = 2**16
"""Incorrect pairs that are looked at; a weighting that keeps fewer than one in so many teaches nothing either."""


def loss_terms(weighting: str, clusters: Clusters | None) -> LossTerms | AnchorLoss:
    """Return what a weighting makes of clusters.

    One that decides at each step (`AnchorLoss`) is tried on random features of some samples; what it remembers stays as it was.

    Args:
        weighting: ``name`` or ``name:key=value,...``.
        clusters: clusters of the data; None for a weighting that needs none.

    Raises:
        PluginError: the name or an option is unknown, or a value has the wrong type.
        InputError: it removes all incorrect pairs, so that the loss would be 0 and nothing learned.
    """
    terms: LossTerms | AnchorLoss = registry.create("loss_weighting", weighting)(clusters)
    drawn = DRAWN if isinstance(terms, LossTerms) else ROWS * (ROWS - 1)
    kept = keeps_pairs(terms) if isinstance(terms, LossTerms) else teaches(terms, clusters)
    if not kept:
        raise InputError(
            f"Expected a weighting that keeps incorrect pairs, got {weighting}, which removes all {drawn:,} that were drawn at "
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


def teaches(loss: AnchorLoss, clusters: Clusters | None) -> bool:
    """Return whether `ROWS` random samples, with random features of a model, have any gradient; state is put back."""
    if clusters is None or clusters.n_samples < 2:
        return True
    generator = epoch_generator(0, 0)
    index = torch.randperm(clusters.n_samples, generator=generator)[:ROWS]
    x, y = (F.normalize(torch.randn(len(index), DIM, generator=generator), dim=1).requires_grad_() for _ in range(2))
    loss.begin(index)
    total = torch.cat([loss(side) for side in anchors(x, y, x, y, SCALE, None, Where(index, index))]).sum()
    loss.begin(index, again=True)
    return bool(torch.autograd.grad(total, x)[0].any())


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
