"""Neighbourhoods of the images and of the texts of a data set, and the pairs of samples that are similar in both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.clustering.neighbours import nearest_clusters
from clip_negatives.errors import InputError

NEIGHBOURS = 128  # nearest samples of each modality that are compared
MIN_DUPLICATE_AGREEMENT, AGREEMENT_EXPONENT = 0.5, 4.0  # of near-duplicates: (image cosine x text cosine)^4 above 0.5
MIN_SUSPECT_AGREEMENT = 0.05  # of a suspect pair
LIFT_OF_UNRELATED_PAIRS = 16.0  # of samples that are similar, but do not show the same; chosen on one data set


@dataclass(frozen=True, slots=True, eq=False)
class SimilarPairs:
    """Pairs of samples that are neighbours in both modalities, each once; tensors of shape (M,).

    Attributes:
        left: the sample with the smaller number, int64.
        right: the other sample, int64.
        image: cosine of the centred image features, float32.
        text: cosine of the centred text features, float32.
        lift: number of pairs with these two neighbour ranks, divided by the number expected by chance, float32; see
            `Neighbourhoods.pairs`.
    """

    left: Tensor
    right: Tensor
    image: Tensor
    text: Tensor
    lift: Tensor

    def __len__(self) -> int:
        """Return the number of pairs, M."""
        return len(self.left)

    @property
    def agreement(self) -> Tensor:
        """Return ``([image]+ [text]+) ** AGREEMENT_EXPONENT``, 0 .. 1, float32."""
        return (self.image.clamp(min=0) * self.text.clamp(min=0)) ** AGREEMENT_EXPONENT

    @property
    def duplicate_probability(self) -> Tensor:
        """Return ``(1 - 16 / lift)+`` where the agreement is above 0.05, else 0: about the probability of a near-duplicate."""
        return (1 - LIFT_OF_UNRELATED_PAIRS / self.lift).clamp(min=0) * (self.agreement > MIN_SUSPECT_AGREEMENT)

    def take(self, places: Tensor) -> SimilarPairs:
        """Return the pairs at these places, or those of a mask."""
        return SimilarPairs(*(getattr(self, name)[places] for name in ("left", "right", "image", "text", "lift")))


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhoods:
    """The nearest samples of each sample, by image and by text.

    Attributes:
        images: centred image features, float32, shape (N, D_image).
        texts: centred text features, float32, shape (N, D_text).
        image_near: the nearest other samples by image, nearest first, int64, shape (N, m).
        text_near: the nearest other samples by text, int64, shape (N, m).
    """

    images: Tensor
    texts: Tensor
    image_near: Tensor
    text_near: Tensor

    @classmethod
    def of(cls, image_features: Tensor, text_features: Tensor) -> Neighbourhoods:
        """Return the `NEIGHBOURS` nearest samples by the cosine of centred features.

        Args:
            image_features: shape (N, D_image), N at least 2.
            text_features: shape (N, D_text).

        Raises:
            InputError: there are fewer than two samples.
        """
        n = len(image_features)
        if n < 2:
            raise InputError(f"Neighbourhoods need at least 2 samples, got {n}.")
        images, texts = centred(image_features), centred(text_features)
        near = [nearest_clusters(features, min(NEIGHBOURS, n - 1))[0].long() for features in (images, texts)]
        return cls(images, texts, *near)

    def pairs(self) -> SimilarPairs:
        """Return the pairs whose samples are neighbours in both modalities, ascending.

        The lift compares the number of pairs with two ranks (among the neighbours by image, and by text; in bins 1, 2-3, 4-7,
        8-15, ...) to the number that is expected if the two modalities were independent. A pair has the higher lift of its two
        directions.
        """
        n, m = self.image_near.shape
        offsets = torch.arange(n)[:, None] * n
        image_keys, image_order = (offsets + self.image_near).flatten().sort()
        text_keys, text_order = (offsets + self.text_near).flatten().sort()
        in_text = torch.isin(image_keys, text_keys)
        keys = image_keys[in_text]
        image_bins = _bin(image_order[in_text] % m)
        text_bins = _bin(text_order[torch.isin(text_keys, keys)] % m)
        left, right = keys // n, keys % n
        pairs, places = (torch.minimum(left, right) * n + torch.maximum(left, right)).unique(return_inverse=True)
        lift = torch.zeros(len(pairs)).scatter_reduce_(0, places, _lift(image_bins, text_bins, n, m), "amax")
        left, right = pairs // n, pairs % n
        image, text = ((features[left] * features[right]).sum(1) for features in (self.images, self.texts))
        return SimilarPairs(left, right, image, text, lift)

    def overlap(self, k: int) -> float:
        """Return the share of the k nearest samples by image that are among the k nearest by text, 0 .. 1."""
        n = len(self.image_near)
        offsets = torch.arange(n)[:, None] * n
        keys = [(offsets + near[:, :k]).flatten() for near in (self.image_near, self.text_near)]
        return float(torch.isin(*keys).float().mean())


def centred(features: Tensor) -> Tensor:
    """Return features minus their mean, at unit norm, float32; features that equal the mean stay 0."""
    features = features.float()
    return F.normalize(features - features.mean(0), dim=1)


def _bin(ranks: Tensor) -> Tensor:
    """Return the bins of ranks from 0: rank 0, then 1-2, 3-6, 7-14, ..."""
    return (ranks + 1).double().log2().floor().long()


def _lift(image_bins: Tensor, text_bins: Tensor, n: int, m: int) -> Tensor:
    """Return the observed over the expected number of pairs of the bins of each pair."""
    sizes = _bin(torch.arange(m)).bincount().double()
    cells = image_bins * len(sizes) + text_bins
    observed = cells.bincount(minlength=len(sizes) ** 2).double()
    expected = n * sizes[:, None] * sizes[None, :] / (n - 1)
    return (observed / expected.flatten())[cells].float()
