"""Reliable exchanges of captions between samples, by look-up in the tables of image and text clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives.losses.sparse_tables import look_up

PAIRS_AT_ONCE = 2**20
"""Pairs of samples per look-up."""

ROWS_AT_ONCE = 1024
"""Rows of the matrix product in `without_partner` per block."""

SAMPLES_AT_ONCE = 2**20
"""Samples per block when the labels of all samples are read."""

FIRST_PARTNERS = (8, 256)
"""Numbers of candidates tried first: nearly every sample has a reliable partner among few candidates."""


@dataclass(frozen=True, slots=True, eq=False)
class ReliableExchanges:
    """Exchanges of captions that `clip_negatives.clustering.reliability.ReliabilityGate` allows between N samples.

    Two samples are reliable partners if the image of one with the text of the other is a reliable incorrect pair.

    Attributes:
        image_labels: int64, shape (N,).
        text_labels: int64, shape (N,).
        image_table: bool, shape (K_image, K_image), or a sparse table, shape (K_image, m + 1).
        text_table: bool, shape (K_text, K_text), or a sparse table.
        image_neighbours: clusters that each row of a sparse `image_table` lists, shape (K_image, m).
        text_neighbours: clusters that each row of a sparse `text_table` lists.
    """

    image_labels: Tensor
    text_labels: Tensor
    image_table: Tensor
    text_table: Tensor
    image_neighbours: Tensor | None = None
    text_neighbours: Tensor | None = None

    def between(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return whether each pair of an image and a text is reliable, bool; `images` and `texts` broadcast."""
        a, c = self.image_labels, self.text_labels
        by_image = look_up(self.image_table, self.image_neighbours, a[images], a[texts])
        by_text = look_up(self.text_table, self.text_neighbours, c[images], c[texts])
        return by_image & by_text

    def partners(self, samples: Tensor, candidates: Tensor) -> Tensor:
        """Return the number of reliable partners of each sample among the candidates, int64, shape (len(samples),)."""
        rows = samples.split(max(1, PAIRS_AT_ONCE // (max(1, len(candidates)) * self._comparisons)))
        return torch.cat([self.between(row[:, None], candidates[None, :]).sum(dim=1) for row in rows])

    def texts_of(self, image: Tensor) -> Tensor:
        """Return all samples whose texts form a reliable pair with one image, int64."""
        blocks = torch.arange(len(self.image_labels)).split(PAIRS_AT_ONCE // self._comparisons)
        return torch.cat([block[self.between(image, block)] for block in blocks])

    def without_partner_among(self, samples: Tensor, candidates: Tensor) -> Tensor:
        """Return the samples that have no reliable partner among the candidates."""
        remaining, start = samples, 0
        for stop in (*FIRST_PARTNERS, len(candidates)):
            if remaining.numel() and start < stop:
                remaining = remaining[self.partners(remaining, candidates[start:stop]) == 0]
                start = stop
        return remaining

    def without_partner(self) -> Tensor:
        """Return the samples that have no reliable partner in the whole data set."""
        if self.image_neighbours is not None or self.text_neighbours is not None:
            return self._without_partner_in_sparse_tables()
        n_text = self.text_table.shape[0]
        present = torch.zeros(self.image_table.shape[0] * n_text, dtype=torch.bool)
        labels = (self.image_labels.split(SAMPLES_AT_ONCE), self.text_labels.split(SAMPLES_AT_ONCE))
        for image, text in zip(*labels, strict=True):
            present[image * n_text + text] = True
        # Samples with the same image and text cluster have the same partners: test one sample for each pair of clusters.
        cells = present.nonzero().flatten()
        by_cell = ReliableExchanges(cells // n_text, cells % n_text, self.image_table, self.text_table)
        candidates = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))[: FIRST_PARTNERS[-1]]
        remaining = by_cell.without_partner_among(torch.arange(len(cells)), candidates)
        isolated = torch.zeros_like(present)
        for rows in remaining.split(ROWS_AT_ONCE):
            texts = self.image_table[by_cell.image_labels[rows]].float() @ present.view(-1, n_text).float() > 0
            isolated[cells[rows]] = ~(texts & self.text_table[by_cell.text_labels[rows]]).any(dim=1)
        if not isolated.any():
            return cells[:0]
        return isolated[self.image_labels * n_text + self.text_labels].nonzero().flatten()

    def _without_partner_in_sparse_tables(self) -> Tensor:
        n = len(self.image_labels)
        excluded = _excluded(self.image_labels, self.image_table, self.image_neighbours)[self.image_labels]
        excluded += _excluded(self.text_labels, self.text_table, self.text_neighbours)[self.text_labels]
        # A sample that excludes fewer than n samples has a partner. The rest, if any, is small: test all candidates.
        return self.without_partner_among((excluded >= n).nonzero().flatten(), torch.arange(n))

    @property
    def _comparisons(self) -> int:
        """Return the comparisons for one pair: a sparse table compares with each listed cluster."""
        return max(1 if lists is None else lists.shape[1] for lists in (self.image_neighbours, self.text_neighbours))


def _excluded(labels: Tensor, table: Tensor, neighbours: Tensor | None) -> Tensor:
    """Return an upper bound of the number of samples that each cluster excludes as partners, int64, shape (K,)."""
    sizes = labels.bincount(minlength=len(table))
    if neighbours is None:
        return (~table).double().mv(sizes.double()).long()
    lists = neighbours.long()
    unreliable = ~table[:, :-1]
    listed = (sizes[lists] * unreliable).sum(dim=1)
    listed_by = torch.zeros_like(sizes).index_add_(0, lists[unreliable], sizes[:, None].expand_as(lists)[unreliable])
    return listed + listed_by
