"""Search for the nearest centroid of each row, in blocks, without an N x K table of distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.distributed.processes import Processes
from clip_negatives_plugins.parallel_kmeans.rows import Rows
from clip_negatives_plugins.parallel_kmeans.sums import Grid, Tally

SCORES_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}  # rows x centroids; on a CPU 16 MB, about the size of its cache
ROWS_AT_ONCE = (512, 8192)  # minimum and maximum of rows that are scored at a time
Piece = tuple[int, int] | Tensor  # rows that are processed together: (start, stop), or row numbers


class CentroidSearch:
    """Search for the nearest centroid on `device`: by cosine if `spherical` (unit length), else by Euclidean distance."""

    def __init__(self, centroids: Tensor, spherical: bool, device: torch.device) -> None:
        moved = centroids.to(device)
        self.columns = moved.T
        self.spherical = spherical
        # argmin |x - c|^2 = argmax x.c - |c|^2 / 2; between unit lengths the second term is constant.
        self.offset = torch.zeros_like(moved[:, 0]) if spherical else moved.square().sum(1) / -2
        fewest, most = ROWS_AT_ONCE
        self.rows = min(most, max(fewest, SCORES_AT_ONCE[device.type] // len(moved)))
        self.scores = moved.new_empty(self.rows, len(moved))

    def nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest centroid of each row, int64, and its distance, float32, both of shape (B,).

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
    """Return ``scores.argmax(1)``; on a CPU, numpy is six times as fast as torch."""
    return torch.from_numpy(scores.numpy().argmax(1)) if scores.device.type == "cpu" else scores.argmax(1)


@dataclass(slots=True)
class Assignment:
    """Nearest centroids of the rows of one process."""

    pieces: Sequence[Piece]
    labels: Tensor  # int32, shape (n,)
    far: Tensor  # distance to the centroid, float32, shape (n,)

    def row_numbers(self, places: Tensor) -> Tensor:
        """Return the row numbers, int64, of the rows at `places` (positions in the labels)."""
        if not self.pieces:
            return places
        if isinstance(self.pieces[0], tuple):
            return places + self.pieces[0][0]  # blocks are consecutive
        return torch.cat([piece for piece in self.pieces if isinstance(piece, Tensor)])[places]

    def spread(self, grid: Grid) -> Tensor:
        """Return the exact sum of the distances, float64, shape ()."""
        parts = [grid.round(part).sum() for part in self.far.split(2**20)]
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Job:
    """Inputs of one clustering: features, processes, and the grids that make sums exact (see `Grid`)."""

    rows: Rows
    processes: Processes
    device: torch.device  # device of this process
    spherical: bool
    grid: Grid  # for sums of rows
    far_grid: Grid  # for sums of distances
    bound: float  # largest absolute value of the features

    @classmethod
    def of(cls, rows: Rows, processes: Processes, device: torch.device, spherical: bool) -> Job:
        """Read the features once, check that they are finite, and choose the grids."""
        n, bound = len(rows), rows.bound(processes)
        longest = bound * rows.dim**0.5
        farthest = 2 * longest if spherical else 4 * longest**2
        return cls(rows, processes, device, spherical, Grid.of(n, bound), Grid.of(n, farthest), bound)

    @property
    def first_row(self) -> int:
        """Return the number of the first row of this process."""
        blocks = self.rows.blocks(self.processes)
        return blocks[0][0] if blocks else 0

    def unit(self, centroids: Tensor) -> Tensor:
        """Return the centroids, scaled to unit length if the clustering is spherical."""
        return F.normalize(centroids, dim=1) if self.spherical else centroids

    def assign(self, centroids: Tensor, pieces: Sequence[Piece] | None = None, tally: Tally | None = None) -> Assignment:
        """Return the nearest centroids of `pieces`, or of the blocks of this process, and add the rows to `tally`."""
        search = CentroidSearch(centroids, self.spherical, self.device)
        pieces = self.rows.blocks(self.processes) if pieces is None else pieces
        size = sum(piece[1] - piece[0] if isinstance(piece, tuple) else len(piece) for piece in pieces)
        assignment = Assignment(pieces, torch.empty(size, dtype=torch.int32), torch.empty(size))
        wide = torch.empty(search.rows, self.rows.dim, dtype=torch.float64, device=self.device)
        done = 0
        for piece in pieces:
            rows = self.rows.read(*piece) if isinstance(piece, tuple) else self.rows.take(piece)
            for part in rows.split(search.rows):
                moved = part.to(self.device)
                labels, far = search.nearest(moved)
                if tally is not None:
                    tally.add(self.grid.round(moved, wide), labels)
                place = slice(done, done + len(part))
                assignment.labels[place], assignment.far[place] = labels, far
                done += len(part)
        return assignment

    def farthest(self, assignment: Assignment, count: int) -> tuple[Tensor, Tensor]:
        """Return row numbers and labels, int64, of the `count` rows farthest from their centroid, over all processes.

        The farthest row is first; ties are in the order of the pieces.
        """
        places = torch.empty(0, dtype=torch.int64)
        if k := min(count, len(assignment.far)):
            least = assignment.far.topk(k).values[-1]
            places = (assignment.far >= least).nonzero().flatten()
            places = places[assignment.far[places].argsort(descending=True, stable=True)[:k]]
        parts = assignment.row_numbers(places), assignment.labels[places], assignment.far[places]
        numbers, labels, far = map(self.processes.concatenate, parts)
        order = far.argsort(descending=True, stable=True)[:count]
        return numbers[order], labels[order].long()
