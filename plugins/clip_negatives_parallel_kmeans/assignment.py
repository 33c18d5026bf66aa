"""The nearest centroid of each row, in blocks: N x K distances are never held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives_parallel_kmeans.ranks import Ranks
from clip_negatives_parallel_kmeans.rows import Rows
from clip_negatives_parallel_kmeans.sums import Grid, Tally

SCORES_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}
"""Scores of rows with centroids that are held at a time: on a CPU 16 MB, about what its cache holds."""

ROWS_AT_ONCE = (512, 8192)
"""The fewest and the most rows that are scored at a time."""

Piece = tuple[int, int] | Tensor
"""Rows that are worked on together: from one number to another, or of these numbers."""


class Nearest:
    """Find the nearest of some centroids.

    Args:
        centroids: float32, shape (K, D).
        spherical: whether they have unit length and nearest is by cosine, or by Euclidean distance.
        device: where it is searched.
    """

    def __init__(self, centroids: Tensor, spherical: bool, device: torch.device) -> None:
        there = centroids.to(device)
        self.columns = there.T
        self.spherical = spherical
        # argmin |x - c|^2 = argmax x.c - |c|^2 / 2; between unit lengths the second term is the same for all.
        self.offset = torch.zeros_like(there[:, 0]) if spherical else there.square().sum(1) / -2
        fewest, most = ROWS_AT_ONCE
        self.rows = min(most, max(fewest, SCORES_AT_ONCE[device.type] // len(there)))
        self.scores = there.new_empty(self.rows, len(there))

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest centroid of each row, int64, and how far it is, float32, both of shape (B,).

        The distance is ``|x| - <x, c>`` (for unit rows 1 minus the cosine) or ``|x - c|^2``, at least 0.
        """
        labels, best = [], []
        for part in rows.split(self.rows):
            scores = self.scores[: len(part)]
            if self.spherical:
                torch.matmul(part, self.columns, out=scores)
            else:
                torch.addmm(self.offset, part, self.columns, out=scores)
            label = _first_largest(scores)
            labels.append(label)
            best.append(scores.gather(1, label[:, None])[:, 0])
        length, score = torch.linalg.vector_norm(rows, dim=1), torch.cat(best)
        far = length - score if self.spherical else length.square() - 2 * score
        return torch.cat(labels), far.clamp(min=0)


def _first_largest(scores: Tensor) -> Tensor:
    """Return ``scores.argmax(1)``, which numpy finds in a sixth of torch's time on a CPU."""
    return torch.from_numpy(scores.numpy().argmax(1)) if scores.device.type == "cpu" else scores.argmax(1)


@dataclass(slots=True)
class Found:
    """Hold what was found of the rows of one process.

    Attributes:
        pieces: the rows, in pieces.
        labels: nearest centroid, int32, shape (n,).
        far: how far it is, float32, shape (n,).
    """

    pieces: Sequence[Piece]
    labels: Tensor
    far: Tensor

    def numbers(self, places: Tensor) -> Tensor:
        """Return the numbers of the rows at `places` among those of this process, int64."""
        if not self.pieces:
            return places
        if isinstance(self.pieces[0], tuple):
            return places + self.pieces[0][0]  # blocks lie side by side
        return torch.cat([piece for piece in self.pieces if isinstance(piece, Tensor)])[places]

    def spread(self, grid: Grid) -> Tensor:
        """Return the exact sum of the distances, float64, shape ()."""
        parts = [grid.round(part).sum() for part in self.far.split(2**20)]
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Work:
    """Hold what every pass over the rows needs.

    Attributes:
        rows: the features.
        ranks: the processes.
        device: where this one computes.
        spherical: whether nearest is by cosine.
        grid: on which rows are summed.
        far_grid: on which distances are.
        bound: largest absolute value of the features.
    """

    rows: Rows
    ranks: Ranks
    device: torch.device
    spherical: bool
    grid: Grid
    far_grid: Grid
    bound: float

    @property
    def first(self) -> int:
        """Return the number of the first row of this process."""
        blocks = self.rows.blocks(self.ranks)
        return blocks[0][0] if blocks else 0

    @classmethod
    def of(cls, rows: Rows, ranks: Ranks, device: torch.device, spherical: bool) -> Work:
        """Read the features once, refuse what is not finite, and choose grids that their sums are exact on."""
        n, bound = len(rows), rows.bound(ranks)
        longest = bound * rows.dim**0.5
        farthest = 2 * longest if spherical else 4 * longest**2
        return cls(rows, ranks, device, spherical, Grid.of(n, bound), Grid.of(n, farthest), bound)

    def assign(self, centroids: Tensor, pieces: Sequence[Piece] | None = None, tally: Tally | None = None) -> Found:
        """Find the nearest centroid of rows, those of this process if no pieces are named, and sum them; sends nothing."""
        nearest = Nearest(centroids, self.spherical, self.device)
        pieces = self.rows.blocks(self.ranks) if pieces is None else pieces
        size = sum(piece[1] - piece[0] if isinstance(piece, tuple) else len(piece) for piece in pieces)
        found = Found(pieces, torch.empty(size, dtype=torch.int32), torch.empty(size))
        wide = torch.empty(nearest.rows, self.rows.dim, dtype=torch.float64, device=self.device)
        done = 0
        for piece in pieces:
            for part in self.read(piece).split(nearest.rows):
                there = part.to(self.device)
                labels, far = nearest.of(there)
                if tally is not None:
                    tally.add(self.grid.round(there, wide), labels)
                some = slice(done, done + len(part))
                found.labels[some], found.far[some] = labels, far
                done += len(part)
        return found

    def read(self, piece: Piece) -> Tensor:
        """Return the rows of a piece, float32."""
        return self.rows.read(*piece) if isinstance(piece, tuple) else self.rows.take(piece)

    def farthest(self, found: Found, wanted: int) -> tuple[Tensor, Tensor]:
        """Return the rows of all processes that are farthest from their centroids: numbers and labels, int64.

        The farthest one comes first; of equals the first in the order of the pieces.
        """
        places = torch.empty(0, dtype=torch.int64)
        if k := min(wanted, len(found.far)):
            enough = found.far.topk(k).values[-1]
            places = (found.far >= enough).nonzero().flatten()
            places = places[found.far[places].argsort(descending=True, stable=True)[:k]]
        mine = found.numbers(places), found.labels[places], found.far[places]
        numbers, labels, far = (self.ranks.joined(part) for part in mine)
        order = far.argsort(descending=True, stable=True)[:wanted]
        return numbers[order], labels[order].long()
