"""Which exchanges of texts between samples are reliable, looked up in the two tables between clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives.listed import look_up

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
        image_table: bool, shape (K_image, K_image), or (K_image, m + 1) where clusters list their nearest.
        text_table: bool, shape (K_text, K_text), or likewise.
        image_listed: the clusters that each image cluster lists, shape (K_image, m), where there are very many; else None.
        text_listed: the same of the text clusters.
    """

    image_labels: Tensor
    text_labels: Tensor
    image_table: Tensor
    text_table: Tensor
    image_listed: Tensor | None = None
    text_listed: Tensor | None = None

    def between(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return whether the image of each of `images` with the text of each of `texts` is reliable; both broadcast."""
        a, c = self.image_labels, self.text_labels
        by_image = look_up(self.image_table, self.image_listed, a[images], a[texts])
        by_text = look_up(self.text_table, self.text_listed, c[images], c[texts])
        return by_image & by_text

    def partners(self, images: Tensor, among: Tensor) -> Tensor:
        """Return how many of the samples `among` each of `images` may exchange texts with, int64, shape (len(images),)."""
        width = max(1, len(among)) * max(
            [1, *(len(lists[0]) for lists in (self.image_listed, self.text_listed) if lists is not None)]
        )
        rows = images.split(max(1, PAIRS_AT_ONCE // width))
        return torch.cat([self.between(row[:, None], among[None, :]).sum(dim=1) for row in rows])

    def texts_of(self, image: Tensor) -> Tensor:
        """Return the samples whose texts one image may have, int64."""
        everyone = torch.arange(len(self.image_labels))
        return torch.cat([some[self.between(image, some)] for some in everyone.split(self._pairs_at_once)])

    @property
    def _pairs_at_once(self) -> int:
        """Return how many pairs are looked up at a time; a look-up in lists compares with each entry of a list."""
        return PAIRS_AT_ONCE // max(1 if lists is None else lists.shape[1] for lists in (self.image_listed, self.text_listed))

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
        if self.image_listed is not None or self.text_listed is not None:
            return self._hopeless_of_lists()
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

    def _hopeless_of_lists(self) -> Tensor:
        """Do what `hopeless` does without a table of image by text clusters, of which there are too many."""
        n = len(self.image_labels)
        shunned = _shunned(self.image_labels, self.image_table, self.image_listed)[self.image_labels]
        shunned += _shunned(self.text_labels, self.text_table, self.text_listed)[self.text_labels]
        # Who may not exchange with fewer than all may exchange with someone. Of the others, few if any, each is looked at.
        return self.lonely((shunned >= n).nonzero().flatten(), torch.arange(n))


def _shunned(labels: Tensor, table: Tensor, listed: Tensor | None) -> Tensor:
    """Return an upper bound of how many samples those of each cluster may not exchange texts with, int64, shape (K,)."""
    sizes = labels.bincount(minlength=len(table))
    if listed is None:
        return (~table).double().mv(sizes.double()).long()
    lists = listed.long()
    bad = ~table[:, :-1]
    forth = (sizes[lists] * bad).sum(dim=1)
    back = torch.zeros_like(sizes).index_add_(0, lists[bad], sizes[:, None].expand_as(lists)[bad])
    return forth + back
