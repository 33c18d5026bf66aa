"""The sampler `balanced`: at most t samples of each cluster or item, in expectation."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, get_args

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import PlannedSampler, require_clusters
from clip_negatives_plugins.balanced.draws import dealt, systematic

Entries = Literal["image", "text", "groups"]

UNIT = 2**31
"""Integer weight of probability 1."""


class Balanced(PlannedSampler):
    """Batches in which large clusters are cut to `t` samples; small clusters keep all samples.

    A sample of an entry with n samples has the probability ``p = min(1, t / n)``. An epoch has the usual length, so a sample
    occurs ``M p_i / sum(p)`` times in expectation, with M samples in an epoch. The number is rounded up or down at random.
    Samples of rare entries may occur in several steps of an epoch, never twice in a step.

    * Source: MetaCLIP (Xu et al., 2024, arXiv:2309.16671; code: facebookresearch/MetaCLIP). Its entries are 500,000 words and
      phrases, a text may match several of them, and the samples are drawn once, with t = 20,000 for 400 million pairs. We
      read the formula in its code.
    * Our choice: entries are clusters or groups; new draws in each epoch; an epoch of the usual length; the default of `t`. It
      was not compared with other samplers.
    * Sign: independent of similarity within a step, but similar samples of large clusters meet less often.

    Time of an epoch: N log N operations. Memory: about 50 N bytes.

    Args:
        t: largest expected number of samples of an entry in the balanced data, at least 1; None is the median size of the
            entries, or more if the entries otherwise have too few samples for a step.
        by: entries are the clusters of the "image" or the "text", or the "groups"; a sample without a group is a group.

    Raises:
        InputError: there are no clusters or groups; `t` is below 1, or too small for one step.
        DataError: the data have fewer samples than one step.
    """

    repeats = True

    def __init__(self, context: SamplingContext, t: int | None = None, by: Entries = "image") -> None:
        super().__init__(context, self._plan)
        check_number("t", t, at_least=1)
        check_choice("by", by, get_args(Entries))
        clusters = require_clusters(context, "balanced")
        labels = clusters.groups if by == "groups" else (clusters.image if by == "image" else clusters.text).labels
        if labels is None:
            raise InputError("by=groups needs groups, which the clusters lack. Use clip-negatives prepare --group-column.")
        _, entries, sizes = labels.unique(return_inverse=True, return_counts=True)
        largest = int(sizes.max())
        lowest = 1 + bisect_left(range(1, largest), self.step_size, key=lambda t: int(sizes.clamp(max=t).sum()))
        if t is not None and t < lowest:
            raise InputError(f"t={t} keeps fewer samples than one step has ({self.step_size}). Use t={lowest} or more.")
        self.t = max(int(sizes.median()), lowest) if t is None else t
        kept = sizes.clamp(max=self.t)
        self.weights = ((UNIT * kept + sizes - 1) // sizes)[entries]  # rounded up, so that a step has enough samples

    def _plan(self, generator: torch.Generator) -> Tensor:
        draws = systematic(self.weights, len(self) * self.step_size, generator)
        return dealt(draws, len(self), generator)
