"""False negatives with a sampler and a weighting, measured on batches of the sampler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from clip_negatives.batches.extras import Captions
from clip_negatives.host.method import Method
from clip_negatives.interfaces import LossTerms, NegativeSampler, SamplingContext
from clip_negatives.losses.functional import require_terms
from clip_negatives.meter.reading import Treatment
from clip_negatives.meter.suspects import truths_of
from clip_negatives.metrics.false_negatives import count_false_negatives, false_negative_figures
from clip_negatives.storage.clusters_folder import ClustersFolder

BATCHES = 50  # number of batches measured for each method
PAIRS = 2 * 10**9  # limit of incorrect pairs measured for each method; large batches are fewer, but at least one


class AppliedMethod(NamedTuple):
    """A method applied to the clusters of one data set."""

    sampler: NegativeSampler
    terms: LossTerms


def apply_method(folder: ClustersFolder, method: Method, batch_size: int, seed: int) -> AppliedMethod:
    """Create sampler and loss terms; raises PluginError, or InputError if a plugin rejects the data or has no terms."""
    context = SamplingContext.of(folder.clusters, batch_size, seed=seed, captions=Captions(folder.samples))
    sampler = method.create_sampler(context)
    return AppliedMethod(sampler, require_terms(method.create_weighting()(folder.clusters), method.weighting))


def treatments(folder: ClustersFolder, batch_size: int, method: Method, seed: int) -> Iterator[Treatment]:
    """Yield the figures of the method for each definition of a false negative."""
    sampler, terms = apply_method(folder, method, batch_size, seed)
    n_batches = max(1, min(BATCHES, PAIRS // (batch_size * (batch_size - 1))))
    batches = [torch.tensor(batch) for batch in itertools.islice(_batches(sampler), n_batches)]
    for kind, truth in truths_of(folder).items():
        counts = torch.stack([count_false_negatives(truth[index], terms.take(index)) for index in batches]).sum(dim=0)
        figures: dict[str, Any] = {name: float(value) for name, value in false_negative_figures(counts).items()}
        del figures["removed_false_share"]
        weight = None if math.isnan(figures["false_weight"]) else figures["false_weight"]
        figures |= {"false_weight": weight, "batches": len(batches)}
        yield Treatment(method.sampler, method.weighting, kind, **figures)


def _batches(sampler: NegativeSampler) -> Iterator[list[int]]:
    """Yield batches, epoch after epoch, without end."""
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from sampler
