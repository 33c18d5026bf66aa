"""Explicit incorrect pairs: a few exchanges of texts for each image, drawn anew each step."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.anchors import AnchorLoss, Anchors, info_nce
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters
from clip_negatives.similarity import reliable_tables, removed_share


class Swap:
    """Contrast each pair only with a few exchanges of texts that are drawn at random among the reliable ones.

    Where the texts of i and j are exchanged, both (image i, text j) and (image j, text i) become negatives; every exchange
    within the batch that is reliable, as for `clip_negatives_readings.gates.Gate2`, is made with the probability that gives
    `per_image` of them for each image on average over the data; all other pairs are removed. A reading of the authors'
    technical report (IPSJ, 2024-05-08), which swaps the texts of dissimilar pairs and keeps fewer incorrect pairs than a
    batch has; the number is not public, and drawing within the batch, where the texts are encoded anyway, is our choice.
    Sign: removes what is similar, by the frozen similarity, and reduces at random.

    Args:
        per_image: exchanges for each image on average, over 0; as many as there are, where there are fewer.
        image_threshold: see `Gate2`.
        image_quantile: see `Gate2`.
        text_threshold: see `Gate2`.
        text_quantile: see `Gate2`.
        seed: seed of the draws.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(
        self,
        per_image: float = 16.0,
        image_threshold: float | None = None,
        image_quantile: float | None = 0.95,
        text_threshold: float | None = None,
        text_quantile: float | None = 0.95,
        seed: int = 0,
    ) -> None:
        if not 0 < per_image < float("inf"):
            raise InputError(f"Expected per_image over 0, got {per_image}.")
        self.per_image, self.seed = per_image, seed
        self.gate = {
            "image_threshold": image_threshold,
            "image_quantile": image_quantile,
            "text_threshold": text_threshold,
            "text_quantile": text_quantile,
        }

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss with the tables."""
        return _Swapped(clusters, reliable_tables(clusters, **self.gate), self.per_image, self.seed)


class _Swapped(AnchorLoss):
    step: Tensor

    def __init__(self, clusters: Clusters, reliable: tuple[Tensor, Tensor], per_image: float, seed: int) -> None:
        super().__init__()
        self.labels = clusters.image.labels, clusters.text.labels
        self.reliable, self.per_image, self.seed = reliable, per_image, seed
        self.n_samples = clusters.n_samples
        self.reliable_share = 1 - removed_share(clusters, *reliable)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, anchors: Anchors) -> Tensor:
        rows, columns = anchors.where.index, anchors.where.candidates
        allowed = anchors.negatives
        for labels, table in zip(self.labels, self.reliable, strict=True):
            mine, theirs = labels[rows.to(labels.device)], labels[columns.to(labels.device)]
            allowed = allowed & table[mine][:, theirs].to(allowed.device)
        share = self.per_image / max(self.reliable_share * (len(columns) - 1), 1e-9)
        drawn = allowed & (uniform(rows[:, None], columns[None, :], self.step + self.seed) < share)
        if anchors.modality == "text":
            self.step += 1  # the draw of a step is the same for its images and its texts
        return info_nce(anchors, log_weights=torch.zeros_like(anchors.cosines).masked_fill(~drawn, -torch.inf))


def uniform(i: Tensor, j: Tensor, seed: Tensor) -> Tensor:
    """Return a number within 0 .. 1 for each two samples, the same for (i, j) and (j, i), another for each seed.

    A hash in the place of a generator: every process draws the same for a pair, whichever part of the matrix it has. The
    mixing is that of SplitMix64 (Steele, Lea and Flood, 2014), whose multiplications wrap around.
    """
    mixed = torch.minimum(i, j) * 0x1F123BB5 + torch.maximum(i, j) * 0x9E3779B1 + (seed + 1) * 0x632BE59BD9B4E019
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    mixed = mixed ^ ((mixed >> 31) & ((1 << 33) - 1))
    return (mixed & ((1 << 24) - 1)).float() / (1 << 24)
