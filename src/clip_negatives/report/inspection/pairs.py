"""Random incorrect pairs of batches, and the pairs that a report shows: generated, removed, or lowest in weight."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.interfaces import LossTerms
from clip_negatives.losses.functional import pair_log_weights
from clip_negatives.meter.suspects import SAMPLED_PAIRS, modalities, random_pairs
from clip_negatives.meter.treatments import AppliedMethod
from clip_negatives.report.inspection.setting import Setting
from clip_negatives.sampling import epoch_generator
from clip_negatives.storage.clusters_folder import ClustersFolder

BATCHES = 50  # batches of an epoch from which the pairs are drawn


class SampledPairs(NamedTuple):
    """Random incorrect pairs, the two samples always from one batch; tensors of shape (M,)."""

    images: Tensor
    texts: Tensor
    weights: Tensor  # relative to the mean of the kept pairs, 0 for a removed pair, float32
    scale: float  # mean weight of the kept pairs


class Pair(NamedTuple):
    """An incorrect pair: the image of one sample with the text of another."""

    image: int
    text: int
    weight: float  # relative to the mean of the kept pairs of a batch
    image_similarity: float  # cosine between the two image clusters
    text_similarity: float
    same: bool  # a false negative


class PairsOfKind(NamedTuple):
    """Shown pairs of one kind: "generated", "removed" or "lowest". `total` also counts pairs of this kind not shown."""

    kind: str
    pairs: list[Pair]
    total: int


def pair_weights(terms: LossTerms, images: Tensor, texts: Tensor) -> Tensor:
    """Return ``exp(b)`` of the pairs, 0 for a removed pair, float32, shape (M,)."""
    weight = pair_log_weights(terms, images, texts).exp()
    return weight if terms.groups is None else weight.masked_fill(terms.groups[images] == terms.groups[texts], 0.0)


def draw_pairs(method: AppliedMethod, seed: int) -> SampledPairs:
    """Draw random pairs from the batches of one epoch."""
    generator = epoch_generator(seed, 0)
    method.sampler.set_epoch(0)
    batches = torch.tensor(list(itertools.islice(method.sampler, BATCHES)))
    rows = torch.randint(len(batches), (SAMPLED_PAIRS,), generator=generator)
    left, right = random_pairs(batches.shape[1], generator)
    images, texts = batches[rows, left], batches[rows, right]
    weights = pair_weights(method.terms, images, texts)
    kept = weights > 0
    scale = float(weights[kept].mean()) if kept.any() else 1.0
    return SampledPairs(images, texts, weights / scale, scale)


def false_pairs(truth: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return random false negatives: pairs of two different samples with equal `truth`; empty if there are none."""
    order = truth.argsort(stable=True)
    sizes = truth[order].unique_consecutive(return_counts=True)[1]
    start = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    size = sizes.repeat_interleave(sizes)
    partners = (size - 1).double()  # a sample has as many pairs as partners
    if not partners.any():
        return truth[:0], truth[:0]
    generator = epoch_generator(seed, 4)
    draws = torch.rand(SAMPLED_PAIRS, generator=generator).double() * partners.sum()
    places = torch.searchsorted(partners.cumsum(0), draws, right=True).clamp(max=len(truth) - 1)
    step = (torch.rand(SAMPLED_PAIRS, generator=generator).double() * partners[places]).long() + 1
    partner = start[places] + (places - start[places] + step) % size[places]
    return order[places], order[partner]


def generated(folder: ClustersFolder, method: AppliedMethod, scale: float, setting: Setting, truth: Tensor) -> PairsOfKind:
    """Return a random selection of the incorrect pairs that `clip_negatives.pipelines.generate` writes."""
    incorrect = method.sampler.incorrect_pairs(1, epoch_generator(setting.seed, 0))
    places = torch.randperm(len(incorrect), generator=epoch_generator(setting.seed, 1))[: setting.pairs]
    images, texts = incorrect.image_index[places], incorrect.text_index[places]
    pairs = _pairs(folder, images, texts, pair_weights(method.terms, images, texts) / scale, truth)
    return PairsOfKind("generated", pairs, len(incorrect))


def lowest_pairs(folder: ClustersFolder, sampled: SampledPairs, setting: Setting, truth: Tensor) -> PairsOfKind:
    """Return removed pairs or, if none is removed, the pairs of lowest weight; (i, j) and (j, i) count as one pair."""
    removed = sampled.weights == 0
    places = removed.nonzero().flatten() if removed.any() else sampled.weights.argsort(stable=True)[: 4 * setting.pairs]
    samples = torch.stack([sampled.images[places], sampled.texts[places]], dim=1).sort(dim=1).values
    first = {tuple(both): place for place, both in reversed(list(enumerate(samples.tolist())))}
    chosen = places[sorted(first.values())][: setting.pairs]
    pairs = _pairs(folder, sampled.images[chosen], sampled.texts[chosen], sampled.weights[chosen], truth)
    return PairsOfKind("removed" if removed.any() else "lowest", pairs, int(removed.sum()))


def _pairs(folder: ClustersFolder, images: Tensor, texts: Tensor, weights: Tensor, truth: Tensor) -> list[Pair]:
    labels = ((part.similarity, part.clustering.labels) for part in modalities(folder.clusters))
    similarities = (similarity[label[images], label[texts]] for similarity, label in labels)
    columns = images, texts, weights, *similarities, truth[images] == truth[texts]
    return [Pair(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
