"""The iterations of k-means: over all rows (Lloyd) or over some of them at a time (mini-batches)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.sampling import epoch_generator
from clip_negatives_parallel_kmeans.assignment import Found, Piece, Work
from clip_negatives_parallel_kmeans.balance import balance
from clip_negatives_parallel_kmeans.checkpoint import Checkpoint, State
from clip_negatives_parallel_kmeans.empties import fill, reseed
from clip_negatives_parallel_kmeans.options import Options
from clip_negatives_parallel_kmeans.start import first_centroids
from clip_negatives_parallel_kmeans.sums import Tally

RUN_ROWS = 256
"""Rows side by side that a mini-batch takes at most at a time: disks read them in one go."""

RUNS_PER_BATCH = 64
"""A mini-batch is of at least so many places of the data."""

PIECE_ROWS = 4096
"""Rows of a mini-batch that one process works on at a time."""


@dataclass(slots=True)
class KMeansRun:
    """Run k-means on some rows.

    Attributes:
        work: the rows and the processes.
        options: what is asked for.
        k: K.
        seed: of the start and of the mini-batches.
        checkpoint: where states are kept.
    """

    work: Work
    options: Options
    k: int
    seed: int
    checkpoint: Checkpoint
    _order: tuple[int, Tensor] | None = field(default=None, init=False)

    def clustered(self, *, refuse_equal: bool = True) -> tuple[Found, Tensor]:
        """Return the clusters: labels of the rows of this process, and centroids; none is empty.

        Raises:
            InputError: fewer than K samples differ and that is refused.
        """
        centroids = self.centroids()
        found = self.work.ranks.together(lambda: self.work.assign(centroids))
        self.balance(found, centroids)
        fill(self.work, found, centroids, refuse_equal=refuse_equal)
        return found, self.work.ranks.from_first(centroids)

    def centroids(self) -> Tensor:
        """Return the centroids after the last iteration, float32, shape (K, D)."""
        state = self.checkpoint.load()
        if state is None:
            start = first_centroids(self.work, self.options.init, self.k, self.seed)
            state = State.at(self._unit(start))
            self.checkpoint.save(state)
        while not state.done and state.iteration < self.options.n_iter:
            self._pass_over_all(state) if self.options.batch_size is None else self._pass_over_batch(state)
            state.iteration += 1
            state.centroids = self.work.ranks.from_first(state.centroids)
            self.checkpoint.save(state)
        return state.centroids

    def balance(self, found: Found, centroids: Tensor, tally: Tally | None = None) -> None:
        """Let no cluster hold more than its share, where that is asked for."""
        if self.options.max_share is not None:
            balance(self.work, found, centroids, self.options.capacity(len(self.work.rows)), tally)

    def _pass_over_all(self, state: State) -> None:
        """Move each centroid to the mean of its rows."""
        found, tally = self._summed(state.centroids, None)
        state.centroids = self._unit((tally.sums / tally.counts.clamp(min=1)[:, None]).float())
        empty = (tally.counts == 0).nonzero().flatten()
        if len(empty):
            reseed(self.work, found, state.centroids, empty)
        self._compare(state, float(tally.spread))

    def _pass_over_batch(self, state: State) -> None:
        """Move each centroid to the mean of the rows of all batches that were its own (Sculley, 2010)."""
        pieces, last = self._batch(state.iteration)
        found, tally = self._summed(state.centroids, pieces)
        seen = state.seen + tally.counts
        moved = (state.centroids.double() * state.seen[:, None] + tally.sums) / seen.clamp(min=1)[:, None]
        met = tally.counts > 0
        state.centroids[met] = self._unit(moved[met].float())
        state.seen, state.passed = seen, state.passed + tally.counts
        state.running += float(tally.spread)
        if last:
            empty = (state.passed == 0).nonzero().flatten()
            if len(empty):
                state.seen[reseed(self.work, found, state.centroids, empty)] = 0
            self._compare(state, state.running)
            state.running = 0.0
            state.passed = torch.zeros_like(state.passed)

    def _summed(self, centroids: Tensor, pieces: Sequence[Piece] | None) -> tuple[Found, Tally]:
        """Return where the rows of this process are, and the sums of those of all."""
        work = self.work
        tally = Tally(self.k, work.rows.dim, work.device)
        found = work.ranks.together(lambda: work.assign(centroids, pieces, tally))
        if pieces is None:
            self.balance(found, centroids, tally)
        tally.spread += found.spread(work.far_grid).to(work.device)
        return found, tally.replaced(work.ranks.total(tally.everything).cpu())

    def _compare(self, state: State, spread: float) -> None:
        before, state.spread = state.spread, spread
        state.done = before is not None and before - spread <= self.options.tolerance * before

    def _batch(self, iteration: int) -> tuple[list[Piece], bool]:
        """Return the rows of a mini-batch that this process works on, and whether it is the last of a pass over the data."""
        n, size = len(self.work.rows), self.options.batch_size or 1
        run = min(RUN_ROWS, max(1, size // RUNS_PER_BATCH))
        runs, at_once = math.ceil(n / run), max(1, size // run)
        batches = math.ceil(runs / at_once)
        turn, number = divmod(iteration, batches)
        if self._order is None or self._order[0] != turn:
            order = torch.randperm(runs, generator=epoch_generator(self.seed, turn + 1))
            self._order = turn, order
        chosen = self._order[1][number * at_once : (number + 1) * at_once].sort().values
        rows = (chosen[:, None] * run + torch.arange(run)).flatten()
        pieces = rows[rows < n].split(PIECE_ROWS)
        share = self.work.ranks.share(len(pieces))
        return list(pieces[share.start : share.stop]), number == batches - 1

    def _unit(self, centroids: Tensor) -> Tensor:
        return F.normalize(centroids, dim=1) if self.work.spherical else centroids
