"""Which exchanges of texts between samples are reliable, looked up in the two tables between clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024
"""Rows of a samples x samples look-up that are held at a time."""

FIRST_LOOK = 256
"""Partners that are tried before all are: nearly every sample has a reliable one among them."""


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
        rows = images.split(ROWS_AT_ONCE)
        return torch.cat([self.between(row[:, None], among[None, :]).sum(dim=1) for row in rows])

    def lonely(self, images: Tensor, among: Tensor) -> Tensor:
        """Return those of `images` that may exchange texts with none of `among`."""
        left = images[self.partners(images, among[:FIRST_LOOK]) == 0]
        if left.numel() == 0 or among.numel() <= FIRST_LOOK:
            return left
        return left[self.partners(left, among[FIRST_LOOK:]) == 0]

    def hopeless(self) -> Tensor:
        """Return the samples that may exchange texts with no other sample of the data set."""
        n_text = self.text_table.shape[0]
        joint, kind = (self.image_labels * n_text + self.text_labels).unique(return_inverse=True)
        kinds = ReliableExchanges(joint // n_text, joint % n_text, self.image_table, self.text_table)
        everyone = torch.arange(joint.numel())
        alone = torch.zeros(joint.numel(), dtype=torch.bool)
        alone[kinds.lonely(everyone, everyone)] = True
        return alone[kind].nonzero().flatten()
