"""What a sampler and a weighting make of false negatives, looked at on the batches that the sampler composes."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator

import torch
from torch import Tensor

from clip_negatives import registry
from clip_negatives.artifacts import ClustersFolder
from clip_negatives.extra_texts import Captions
from clip_negatives.functional import before_training
from clip_negatives.interfaces import LossTerms, NegativeSampler, SamplingContext
from clip_negatives.kernels import log_weights
from clip_negatives.meter.reading import Treatment
from clip_negatives.meter.truth import truths_of

BATCHES = 50
"""Batches that are looked at for each method, where they are not too large for so many."""

PAIRS = 2 * 10**9
"""Incorrect pairs that are looked at for each method at most, but at least one batch."""

ROWS = 1024
"""Rows of a batch that are compared with all of it at a time."""


def treatments(folder: ClustersFolder, batch_size: int, sampler: str, weighting: str, seed: int) -> Iterator[Treatment]:
    """Yield what the method does, by each truth."""
    clusters = folder.clusters
    captions = Captions(folder.samples)
    context = SamplingContext(clusters.n_samples, batch_size, seed=seed, clusters=clusters, captions=captions)
    terms = before_training(registry.create("loss_weighting", weighting)(clusters), weighting)
    composed = _batches(registry.create("negative_sampler", sampler, context))
    pairs = batch_size * (batch_size - 1)
    looked_at = [torch.tensor(batch) for batch in itertools.islice(composed, max(1, min(BATCHES, PAIRS // pairs)))]
    for kind, truth in truths_of(folder).items():
        tallies = [_tally(truth[index], terms.take(index)) for index in looked_at]
        kept, weight, false, false_kept, false_weight = torch.stack(tallies).mean(dim=0).tolist()
        mean_weight = weight / kept if kept else 0.0
        yield Treatment(
            sampler=sampler,
            weighting=weighting,
            truth=kind,
            per_anchor=false / batch_size,
            per_anchor_kept=false_kept / batch_size,
            removed_share=1.0 - kept / pairs,
            mean_weight=mean_weight,
            false_weight=false_weight / false / mean_weight if false and mean_weight else None,
            batches=len(looked_at),
        )


def _batches(sampler: NegativeSampler) -> Iterator[list[int]]:
    """Yield the batches of one epoch after the other."""
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from sampler


def _tally(truth: Tensor, terms: LossTerms) -> Tensor:
    """Count the incorrect pairs of a batch.

    Args:
        truth: what each sample shows, int64, shape (B,).
        terms: log-weights of the batch.

    Returns:
        Float64, shape (5,): pairs that are kept, the sum of their weights, false negatives, those that are kept, the
        sum of the weights of the false negatives.
    """
    n, total = len(truth), torch.zeros(5, dtype=torch.float64)
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        weight = torch.ones(rows.stop - start, n)
        if terms.n_samples is not None:
            weight = log_weights.block(terms.map_samples(operator.itemgetter(rows)), terms, torch.float32).exp()
        weight.diagonal(start).zero_()  # the correct pairs, which are neither kept nor removed
        false = truth[rows, None] == truth[None, :]
        false.diagonal(start).fill_(False)
        kept = weight > 0
        weight_of_false = weight[false]  # few
        total += torch.tensor(
            [
                int(kept.sum()),
                float(weight.sum(dtype=torch.float64)),
                weight_of_false.numel(),
                int((weight_of_false > 0).sum()),
                float(weight_of_false.sum(dtype=torch.float64)),
            ],
            dtype=torch.float64,
        )
    return total
