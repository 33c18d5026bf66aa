"""The weighting `swap`: a few random reliable pairs for each image, drawn anew each step."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce
from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.clustering.similarity import removed_share
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clusters


class Swap:
    """Keep a few random reliable pairs as negatives of each image; remove all other pairs.

    An exchange of the texts of i and j makes both (image i, text j) and (image j, text i) negatives. Every reliable exchange
    within the batch (reliable as in `gate2`) is drawn with the same probability. On average over the data, an image
    has `per_image` exchanges. All other pairs are removed.

    * Source: a reading of the authors' technical report (IPSJ, 2024-05-08), which swaps the texts of dissimilar pairs and keeps
      fewer incorrect pairs than a batch has.
    * Our choice: the number of exchanges, which is not public, and drawing within the batch, whose texts are encoded anyway.
    * Sign: removes similar pairs, by the frozen similarity, and other pairs at random.

    Args:
        per_image: average number of exchanges of an image, above 0; all exchanges if there are fewer.
        image_threshold: two image clusters are too similar from this cosine on, -1 .. 1.
        image_quantile: the same threshold as a quantile of all pairs, 0 .. 1; 0.95 makes the most similar 5 % unreliable. Used
            if `image_threshold` is none. If both are none, the image clusters only have to differ.
        text_threshold: the same as `image_threshold`, for text clusters.
        text_quantile: the same as `image_quantile`, for text clusters.
        seed: seed of the draws.
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
        check_number("per_image", per_image, above=0)
        self.per_image, self.seed = per_image, seed
        self.gate = ReliabilityGate(image_threshold, image_quantile, text_threshold, text_quantile)

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss, with the tables of the gate."""
        return _SwapLoss(clusters, self.gate.tables(clusters), self.per_image, self.seed)


class _SwapLoss(AnchorLoss):
    step: Tensor

    def __init__(self, clusters: Clusters, reliable: tuple[Tensor, Tensor], per_image: float, seed: int) -> None:
        super().__init__()
        self.labels = clusters.image.labels, clusters.text.labels
        self.reliable, self.per_image, self.seed = reliable, per_image, seed
        self.n_samples = clusters.n_samples
        self.reliable_share = 1 - removed_share(clusters, *reliable)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, anchors: Anchors) -> Tensor:
        rows, columns = anchors.samples.index, anchors.samples.candidates
        allowed = anchors.negatives
        for labels, table in zip(self.labels, self.reliable, strict=True):
            row_labels, column_labels = labels[rows.to(labels.device)], labels[columns.to(labels.device)]
            allowed = allowed & table[row_labels][:, column_labels].to(allowed.device)
        share = self.per_image / max(self.reliable_share * (len(columns) - 1), 1e-9)
        drawn = allowed & (uniform(rows[:, None], columns[None, :], self.step + self.seed) < share)
        if anchors.modality == "text":
            self.step += 1  # images and texts of a step use the same draw
        return info_nce(anchors, log_weights=torch.zeros_like(anchors.cosines).masked_fill(~drawn, -torch.inf))


def uniform(i: Tensor, j: Tensor, seed: Tensor) -> Tensor:
    """Return a pseudo-random number in 0 .. 1 for each pair of samples and seed, the same for (i, j) and (j, i).

    It is a hash, so every process computes the same number for a pair, whichever part of the matrix the process holds.
    Source: the mixing of SplitMix64 (Steele, Lea and Flood, 2014), whose multiplications wrap around.
    """
    mixed = torch.minimum(i, j) * 0x1F123BB5 + torch.maximum(i, j) * 0x9E3779B1 + (seed + 1) * 0x632BE59BD9B4E019
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    mixed = mixed ^ ((mixed >> 31) & ((1 << 33) - 1))
    return (mixed & ((1 << 24) - 1)).float() / (1 << 24)
