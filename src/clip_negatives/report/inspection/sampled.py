"""Pairs as training meets them: drawn from batches that the sampler composes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives import registry
from clip_negatives.artifacts import ClustersFolder
from clip_negatives.extra_texts import Captions
from clip_negatives.functional import before_training, pair_log_weights
from clip_negatives.interfaces import LossTerms, NegativeSampler, SamplingContext
from clip_negatives.report.inspection.setting import Setting
from clip_negatives.sampling import epoch_generator

PAIRS = 200_000
"""Pairs that are drawn."""

BATCHES = 50
"""Batches that they are drawn from, where an epoch has so many."""


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """Hold a sampler and what a weighting decides, for one data set."""

    sampler: NegativeSampler
    terms: LossTerms

    @classmethod
    def of(cls, folder: ClustersFolder, setting: Setting) -> Method:
        """Build both.

        Raises:
            PluginError: a name or an option is unknown.
            InputError: one refuses the data, or the weighting decides at each step.
        """
        clusters = folder.clusters
        context = SamplingContext(
            clusters.n_samples, setting.batch_size, seed=setting.seed, clusters=clusters, captions=Captions(folder.samples)
        )
        sampler = registry.create("negative_sampler", setting.sampler, context)
        terms = before_training(registry.create("loss_weighting", setting.weighting)(clusters), setting.weighting)
        return cls(sampler, terms)

    def weights(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return ``exp(b)`` of pairs, 0 where they are removed, float32, shape (M,)."""
        weight = pair_log_weights(self.terms, images, texts).exp()
        groups = self.terms.groups
        return weight if groups is None else weight.masked_fill(groups[images] == groups[texts], 0.0)

    @property
    def live(self) -> bool:
        """Return whether the weighting also acts by what the model thinks at each step."""
        return self.terms.hardness > 0 or self.terms.margin is not None or self.terms.positive_rate is not None


@dataclass(frozen=True, slots=True, eq=False)
class SampledPairs:
    """Hold incorrect pairs of batches.

    Attributes:
        images: samples whose image it is, int64, shape (M,).
        texts: samples whose text it is, in the same batch, int64, shape (M,).
        weights: how much each counts as a multiple of the mean of those that are kept; 0 is removed; float32, shape (M,).
        scale: that mean.
    """

    images: Tensor
    texts: Tensor
    weights: Tensor
    scale: float

    @property
    def removed_share(self) -> float:
        """Return the share that is removed, 0 .. 1."""
        return float((self.weights == 0).double().mean())


def draw_pairs(method: Method, setting: Setting) -> SampledPairs:
    """Draw pairs at random from the batches of one epoch."""
    generator = epoch_generator(setting.seed, 0)
    method.sampler.set_epoch(0)
    batches = torch.tensor(list(itertools.islice(method.sampler, BATCHES)))
    rows = torch.randint(len(batches), (PAIRS,), generator=generator)
    size = batches.shape[1]
    here = torch.randint(size, (PAIRS,), generator=generator)
    there = (here + torch.randint(1, size, (PAIRS,), generator=generator)) % size
    images, texts = batches[rows, here], batches[rows, there]
    weights = method.weights(images, texts)
    kept = weights > 0
    scale = float(weights[kept].mean()) if kept.any() else 1.0
    return SampledPairs(images, texts, weights / scale, scale)


def false_pairs(truth: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return random pairs of two different samples that show the same; none where there are none."""
    order = truth.argsort(stable=True)
    sizes = truth[order].unique_consecutive(return_counts=True)[1]
    start = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    size = sizes.repeat_interleave(sizes)
    others = (size - 1).double()
    if not others.any():
        return truth[:0], truth[:0]
    generator = epoch_generator(seed, 4)
    # A sample stands in as many pairs as there are others like it.
    places = torch.searchsorted(others.cumsum(0), torch.rand(PAIRS, generator=generator).double() * others.sum(), right=True)
    places = places.clamp(max=len(truth) - 1)
    step = (torch.rand(PAIRS, generator=generator).double() * others[places]).long() + 1
    partner = start[places] + (places - start[places] + step) % size[places]
    return order[places], order[partner]
