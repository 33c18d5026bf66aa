"""Iterations of k-means: over all rows (Lloyd) or over mini-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clip_negatives.progress import current, stage
from clip_negatives.sampling import epoch_generator
from clip_negatives_plugins.parallel_kmeans.assignment import Assignment, Job, Piece
from clip_negatives_plugins.parallel_kmeans.balance import balance
from clip_negatives_plugins.parallel_kmeans.checkpoint import Checkpoint, State
from clip_negatives_plugins.parallel_kmeans.empties import fill, reseed
from clip_negatives_plugins.parallel_kmeans.options import Options
from clip_negatives_plugins.parallel_kmeans.start import first_centroids
from clip_negatives_plugins.parallel_kmeans.sums import Tally

RUN_ROWS = 256  # maximum length of a run: consecutive rows, which a disk reads at once
RUNS_PER_BATCH = 64  # minimum number of runs in a mini-batch
PIECE_ROWS = 4096  # rows of a mini-batch that one process works on at a time


@dataclass(slots=True)
class KMeansRun:
    """One run of k-means; the seed fixes the initial centroids and the mini-batches."""

    job: Job
    options: Options
    k: int
    seed: int
    checkpoint: Checkpoint
    _order: tuple[int, Tensor] | None = field(default=None, init=False)

    def clustered(self, *, refuse_equal: bool = True) -> tuple[Assignment, Tensor]:
        """Return the clusters of the rows of this process, and the centroids; no cluster is empty (see `fill`)."""
        centroids = self.centroids()
        assignment = self.job.processes.together(lambda: self.job.assign(centroids))
        self._balance(assignment, centroids)
        fill(self.job, assignment, centroids, refuse_equal=refuse_equal)
        return assignment, self.job.processes.broadcast(centroids)

    def centroids(self) -> Tensor:
        """Return the centroids after the last iteration, float32, shape (K, D)."""
        state = self.checkpoint.load()
        if state is None:
            state = State.at(self.job.unit(first_centroids(self.job, self.options.init, self.k, self.seed)))
            self.checkpoint.save(state)
        with stage(current().title, self.options.n_iter - state.iteration, "iterations") as running:
            while not state.done and state.iteration < self.options.n_iter:
                self._pass_over_all(state) if self.options.batch_size is None else self._pass_over_batch(state)
                state.iteration += 1
                state.centroids = self.job.processes.broadcast(state.centroids)
                self.checkpoint.save(state)
                running.advance()
        return state.centroids

    def _balance(self, assignment: Assignment, centroids: Tensor, tally: Tally | None = None) -> None:
        if self.options.max_share is not None:
            balance(self.job, assignment, centroids, self.options.capacity(len(self.job.rows)), tally)

    def _pass_over_all(self, state: State) -> None:
        """Move each centroid to the mean of its rows."""
        assignment, tally = self._summed(state.centroids, None)
        state.centroids = self.job.unit((tally.sums / tally.counts.clamp(min=1)[:, None]).float())
        empty = (tally.counts == 0).nonzero().flatten()
        if len(empty):
            reseed(self.job, assignment, state.centroids, empty)
        self._compare(state, float(tally.spread))

    def _pass_over_batch(self, state: State) -> None:
        """Move each centroid to the mean of its rows in all batches so far (Sculley, 2010)."""
        pieces, last = self._batch(state.iteration)
        assignment, tally = self._summed(state.centroids, pieces)
        seen = state.seen + tally.counts
        means = (state.centroids.double() * state.seen[:, None] + tally.sums) / seen.clamp(min=1)[:, None]
        updated = tally.counts > 0
        state.centroids[updated] = self.job.unit(means[updated].float())
        state.seen, state.passed = seen, state.passed + tally.counts
        state.running += float(tally.spread)
        if last:
            empty = (state.passed == 0).nonzero().flatten()
            if len(empty):
                state.seen[reseed(self.job, assignment, state.centroids, empty)] = 0
            self._compare(state, state.running)
            state.running = 0.0
            state.passed = torch.zeros_like(state.passed)

    def _summed(self, centroids: Tensor, pieces: Sequence[Piece] | None) -> tuple[Assignment, Tally]:
        """Return the assignment of the rows of this process, and the sums over all processes."""
        job = self.job
        tally = Tally.empty(self.k, job.rows.dim, job.device)
        assignment = job.processes.together(lambda: job.assign(centroids, pieces, tally))
        if pieces is None:
            self._balance(assignment, centroids, tally)
        tally.spread += assignment.spread(job.far_grid).to(job.device)
        return assignment, Tally(self.k, job.rows.dim, job.processes.sum(tally.buffer).cpu())

    def _compare(self, state: State, spread: float) -> None:
        before, state.spread = state.spread, spread
        state.done = before is not None and before - spread <= self.options.tolerance * before

    def _batch(self, iteration: int) -> tuple[list[Piece], bool]:
        """Return the rows of a mini-batch for this process, and whether the batch is the last of a pass over the data."""
        n, size = len(self.job.rows), self.options.batch_size or 1
        run = min(RUN_ROWS, max(1, size // RUNS_PER_BATCH))
        runs, at_once = math.ceil(n / run), max(1, size // run)
        batches = math.ceil(runs / at_once)
        turn, number = divmod(iteration, batches)
        if self._order is None or self._order[0] != turn:
            self._order = turn, torch.randperm(runs, generator=epoch_generator(self.seed, turn + 1))
        chosen = self._order[1][number * at_once : (number + 1) * at_once].sort().values
        rows = (chosen[:, None] * run + torch.arange(run)).flatten()
        pieces = rows[rows < n].split(PIECE_ROWS)
        return [pieces[place] for place in self.job.processes.share(len(pieces))], number == batches - 1
