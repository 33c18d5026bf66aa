"""The pairs that are shown: those the sampler draws as incorrect, and those that the weighting takes for correct."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives.artifacts import ClustersFolder
from clip_negatives.report.inspection.sampled import Method, SampledPairs
from clip_negatives.report.inspection.setting import Setting
from clip_negatives.sampling import epoch_generator


@dataclass(frozen=True, slots=True)
class Pair:
    """Hold one incorrect pair.

    Attributes:
        image: sample whose image, and own text, it is.
        text: sample whose text is put beside it.
        weight: how much it counts, as a multiple of the mean of the pairs of a batch that are kept.
        image_similarity: cosine between the clusters of the two images, -1 .. 1.
        text_similarity: cosine between the clusters of the two texts, -1 .. 1.
        same: whether the data say that both show the same.
    """

    image: int
    text: int
    weight: float
    image_similarity: float
    text_similarity: float
    same: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """Hold the pairs of one kind.

    Attributes:
        kind: "drawn", "removed" or "lowest".
        pairs: some of them.
        total: how many there are, among those looked at.
    """

    kind: str
    pairs: list[Pair]
    total: int


def drawn(folder: ClustersFolder, method: Method, scale: float, setting: Setting, truth: Tensor) -> Shown:
    """Return some of the pairs that the sampler draws for explicit training, as `clip_negatives.generate` writes them."""
    found = method.sampler.incorrect_pairs(1, epoch_generator(setting.seed, 0))
    some = torch.randperm(len(found), generator=epoch_generator(setting.seed, 1))[: setting.pairs]
    images, texts = found.image_index[some], found.text_index[some]
    weights = method.weights(images, texts) / scale
    return Shown("drawn", _pairs(folder, images, texts, weights, truth), len(found))


def doubtful(folder: ClustersFolder, sampled: SampledPairs, setting: Setting, truth: Tensor) -> Shown:
    """Return pairs of batches that the weighting removes, or, where it removes none, those that it lets count least.

    Of those that are removed some are taken at random; of two samples only one of their two pairs is.
    """
    removed = sampled.weights == 0
    some = removed.nonzero().flatten() if removed.any() else sampled.weights.argsort(stable=True)[: 4 * setting.pairs]
    first = torch.minimum(sampled.images[some], sampled.texts[some]) * len(truth)
    codes = (first + torch.maximum(sampled.images[some], sampled.texts[some])).tolist()
    places = {code: place for place, code in reversed(list(enumerate(codes)))}
    chosen = some[sorted(places.values())][: setting.pairs]
    pairs = _pairs(folder, sampled.images[chosen], sampled.texts[chosen], sampled.weights[chosen], truth)
    return Shown("removed" if removed.any() else "lowest", pairs, int(removed.sum()))


def _pairs(folder: ClustersFolder, images: Tensor, texts: Tensor, weights: Tensor, truth: Tensor) -> list[Pair]:
    image, text = folder.clusters.image.labels, folder.clusters.text.labels
    columns = (
        images,
        texts,
        weights,
        folder.clusters.image_similarity[image[images], image[texts]],
        folder.clusters.text_similarity[text[images], text[texts]],
        truth[images] == truth[texts],
    )
    return [Pair(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
