"""The runs of `choose`: train heads on a fold, and rank its held-out queries, in this process or in several."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.choosing.menu import Candidate
from clip_negatives.choosing.query_ranks import QueryRanks
from clip_negatives.distributed.child import end_with_parent
from clip_negatives.errors import ClipNegativesError
from clip_negatives.heads import Fold, HeadSettings, part_of, train_heads
from clip_negatives.interfaces import Clusters
from clip_negatives.metrics import first_correct

PRELOADED = ("clip_negatives.choosing.fold_runs",)


@dataclass(frozen=True, slots=True)
class Job:
    """Heads to train: a candidate, with a learning rate and a seed, on a fold."""

    candidate: Candidate
    lr: float
    fold: int
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class FoldRuns:
    """Data, folds and settings that all runs share.

    Attributes:
        clusters: all samples, with features.
        captions: text of each sample.
        items: item of each sample, int64, shape (N,).
        folds: the folds of the samples.
        settings: settings of the heads; learning rate and dropout are those of a job.
    """

    clusters: Clusters
    captions: Sequence[str]
    items: Tensor
    folds: Sequence[Fold]
    settings: HeadSettings

    def ranks(self, job: Job) -> QueryRanks:
        """Train heads and rank the held-out queries, with one thread: the ranks must not depend on the number of processes."""
        fold = self.folds[job.fold]
        captions = [self.captions[row] for row in fold.train.tolist()]
        settings = replace(self.settings, lr=job.lr, dropout=job.candidate.dropout)
        with _one_thread():
            clusters = part_of(self.clusters, fold.train)
            with _bfloat16_products():
                heads = train_heads(clusters, job.candidate.method, settings, seed=job.seed, captions=captions)
            held_out = (self.clusters.features_of(name, "A linear head")[fold.held_out] for name in ("image", "text"))
            images, texts = heads.embed(*held_out)
            items = self.items[fold.held_out]
            return QueryRanks(*(first_correct(*pair, items, items)[0] for pair in ((texts, images), (images, texts))))

    def ranks_by_job(self, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, QueryRanks]]:
        """Yield each job and its ranks, in any order.

        Args:
            jobs: the runs.
            workers: number of processes; 1 is this process.
        """
        workers = min(workers, len(jobs))
        if workers <= 1:
            yield from ((job, self.ranks(job)) for job in jobs)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        # Pickled here: multiprocessing would move the tensors to shared memory, of which containers have little.
        pool = ProcessPoolExecutor(workers, context, _begin, (pickle.dumps(self),))
        try:
            running = {pool.submit(_ranks, job): job for job in jobs}
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool as error:
            fault = "A process that trains heads ended unexpectedly, perhaps because memory ran out."
            raise ClipNegativesError(f"{fault} Use {argument('workers')} with a smaller number.") from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def has_bfloat16() -> bool:
    """Return whether this CPU multiplies matrices faster in bfloat16 than in float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest supported torch
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Multiply float32 matrices in bfloat16 within the block, with sums in float32, if this CPU has such products."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if has_bfloat16() else precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


_runs: FoldRuns | None = None  # of a worker process


def _begin(pickled: bytes) -> None:
    """Prepare a worker process; Ctrl-C ends it by way of its parent."""
    global _runs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _runs = pickle.loads(pickled)  # noqa: S301  (written by the parent)


def _ranks(job: Job) -> QueryRanks:
    if _runs is None:
        raise RuntimeError("the process was not prepared")
    return _runs.ranks(job)
