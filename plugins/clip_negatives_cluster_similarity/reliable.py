"""Which exchanges of texts between samples are reliable, looked up in the two tables between clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PAIRS_AT_ONCE = 2**20
"""Pairs of samples that are looked up at a time."""

ROWS_AT_ONCE = 1024
"""Kinds of samples whose reach is worked out at a time."""

AT_ONCE = 2**20
"""Samples whose kind is worked out at a time."""

LOOKS = (8, 256)
"""Partners that are tried before all are: nearly every sample has a reliable one among the first few."""


@dataclass(frozen=True, slots=True, eq=False)
class ReliableExchanges:
    """Hold the cluster labels of N samples and the tables that say which clusters may exchange texts.

    Attributes:
        image_labels: int64, shape (N,).
        text_labels: int64, shape (N,).
        image_table: bool, shape (K_image, K_image).
        text_table: bool, shape (K_text, K_text).
    """

    image_labels: Tensor
    text_labels: Tensor
    image_table: Tensor
    text_table: Tensor

    def between(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return whether the image of each of `images` with the text of each of `texts` is reliable; both broadcast."""
        return (
            self.image_table[self.image_labels[images], self.image_labels[texts]]
            & self.text_table[self.text_labels[images], self.text_labels[texts]]
        )

    def partners(self, images: Tensor, among: Tensor) -> Tensor:
        """Return how many of the samples `among` each of `images` may exchange texts with, int64, shape (len(images),)."""
        rows = images.split(max(1, PAIRS_AT_ONCE // max(1, len(among))))
        return torch.cat([self.between(row[:, None], among[None, :]).sum(dim=1) for row in rows])

    def lonely(self, images: Tensor, among: Tensor) -> Tensor:
        """Return those of `images` that may exchange texts with none of `among`."""
        left, start = images, 0
        for stop in (*LOOKS, len(among)):
            if left.numel() and start < stop:
                left = left[self.partners(left, among[start:stop]) == 0]
                start = stop
        return left

    def hopeless(self) -> Tensor:
        """Return the samples that may exchange texts with no other sample of the data set."""
        n_text = self.text_table.shape[0]
        present = torch.zeros(self.image_table.shape[0] * n_text, dtype=torch.bool)
        for image, text in zip(self.image_labels.split(AT_ONCE), self.text_labels.split(AT_ONCE), strict=True):
            present[image * n_text + text] = True
        # What holds for a sample holds for all of its kind: its image and its text cluster.
        joint = present.nonzero().flatten()
        kinds = ReliableExchanges(joint // n_text, joint % n_text, self.image_table, self.text_table)
        everyone = torch.arange(len(joint))
        some = torch.randperm(len(joint), generator=torch.Generator().manual_seed(0))[: LOOKS[-1]]
        left = kinds.lonely(everyone, some)
        alone = torch.zeros_like(present)
        for rows in left.split(ROWS_AT_ONCE):
            texts = self.image_table[kinds.image_labels[rows]].float() @ present.view(-1, n_text).float() > 0
            alone[joint[rows]] = ~(texts & self.text_table[kinds.text_labels[rows]]).any(dim=1)
        if not alone.any():
            return joint[:0]
        return alone[self.image_labels * n_text + self.text_labels].nonzero().flatten()
