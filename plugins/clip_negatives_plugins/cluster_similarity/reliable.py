"""Reliable exchanges of captions between samples, by look-up in the tables of image and text clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives_plugins.cluster_similarity.side import Side

PAIRS_AT_ONCE = 2**20
"""Pairs of samples per look-up."""

ROWS_AT_ONCE = 1024
"""Rows of the matrix product in `without_partner` per block."""

SAMPLES_AT_ONCE = 2**20
"""Samples per block when the labels of all samples are read."""

FIRST_PARTNERS = (1, 8, 256)
"""Numbers of candidates tried first: nearly every sample has a reliable partner among few candidates."""


@dataclass(frozen=True, slots=True, eq=False)
class ReliableExchanges:
    """Exchanges of captions that `clip_negatives.clustering.reliability.ReliabilityGate` allows between N samples.

    Two samples are reliable partners if the image of one with the text of the other is a reliable incorrect pair.

    Attributes:
        image: clusters of the images.
        text: clusters of the texts.
    """

    image: Side
    text: Side

    def __len__(self) -> int:
        """Return the number of samples, N."""
        return len(self.image.labels)

    def between(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return whether each pair of an image and a text is reliable, bool; `images` and `texts` broadcast."""
        return self.image.between(images, texts) & self.text.between(images, texts)

    def partners(self, samples: Tensor, candidates: Tensor) -> Tensor:
        """Return the number of reliable partners of each sample among the candidates, int64, shape (len(samples),)."""
        rows = samples.split(max(1, PAIRS_AT_ONCE // (max(1, len(candidates)) * self._comparisons)))
        return torch.cat([self.between(row[:, None], candidates[None, :]).sum(dim=1) for row in rows])

    def texts_of(self, image: Tensor) -> Tensor:
        """Return all samples whose texts form a reliable pair with one image, int64."""
        blocks = torch.arange(len(self)).split(PAIRS_AT_ONCE // self._comparisons)
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
        by_image, by_text, n = self.image.excluded(), self.text.excluded(), len(self)
        labels = zip(self.image.labels.split(SAMPLES_AT_ONCE), self.text.labels.split(SAMPLES_AT_ONCE), strict=True)
        # A sample that excludes fewer than n samples has a partner.
        blocks = [(by_image[image] + by_text[text] >= n).nonzero().flatten() for image, text in labels]
        remaining = torch.cat([block + number * SAMPLES_AT_ONCE for number, block in enumerate(blocks)])
        if not remaining.numel():
            return remaining
        if self.image.neighbours is not None or self.text.neighbours is not None:
            # Sparse tables exclude few samples, so the rest is small: test all candidates.
            return self.without_partner_among(remaining, torch.arange(n))
        candidates = torch.randint(n, FIRST_PARTNERS[-1:], generator=torch.Generator().manual_seed(0))
        return self._isolated(self.without_partner_among(remaining, candidates))

    def _isolated(self, samples: Tensor) -> Tensor:
        """Return the samples that have no reliable partner, by dense tables: one test for each pair of clusters."""
        n_text = self.text.n_clusters
        present = torch.zeros(self.image.n_clusters * n_text, dtype=torch.bool)
        for image, text in zip(self.image.labels.split(SAMPLES_AT_ONCE), self.text.labels.split(SAMPLES_AT_ONCE), strict=True):
            present[image * n_text + text] = True
        cells, cell_of = (self.image.labels[samples] * n_text + self.text.labels[samples]).unique(return_inverse=True)
        isolated = []
        for block in cells.split(ROWS_AT_ONCE):
            texts = self.image.rows(block // n_text).float() @ present.view(-1, n_text).float() > 0
            isolated.append(~(texts & self.text.rows(block % n_text)).any(dim=1))
        return samples[torch.cat(isolated)[cell_of]] if isolated else samples

    @property
    def _comparisons(self) -> int:
        return max(self.image.comparisons, self.text.comparisons)
