"""One run of a comparison: train one method with one seed in a process of its own, then measure it."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives import registry
from clip_negatives.artifacts import read_clusters
from clip_negatives.atomic import changing
from clip_negatives.compare.methods import Method
from clip_negatives.errors import ClipNegativesError

if TYPE_CHECKING:
    from torch import Tensor

PRELOADED = ("clip_negatives.integrations.open_clip.seam", "clip_negatives.metrics", "clip_negatives.compare.evaluate")
"""Imported once by the server that runs are forked from, instead of in each run; imports start no threads."""


@dataclass(frozen=True, slots=True)
class Job:
    """Say what one run does.

    Attributes:
        method: which negatives.
        seed: seed of open_clip: initial weights, augmentation, order.
        arguments: command line of open_clip_train, without name, logs and seed.
        model: open_clip's name of the model.
        clusters: clusters folder of the training data.
        test: how the test pairs are read: arguments of `clip_negatives.dataset.open_pairs`.
        folder: where this run keeps its files.
    """

    method: Method
    seed: int
    arguments: tuple[str, ...]
    model: str
    clusters: Path
    test: dict[str, Any]
    folder: Path

    @property
    def train_arguments(self) -> list[str]:
        """Return the whole command line of open_clip_train."""
        own = ["--seed", str(self.seed), "--logs", str(self.folder), "--name", "run"]
        return [*self.arguments, *bias_of(self.method, self.arguments), *own]


def bias_of(method: Method, arguments: Sequence[str]) -> list[str]:
    """Return what to add to open_clip's command line for a method whose loss has a logit bias."""
    item, _ = registry.default_registry().resolve("loss_weighting", method.weighting)
    return ["--siglip"] if item.requires_logit_bias and "--siglip" not in arguments else []


def check_methods(methods: Sequence[Method], arguments: Sequence[str], clusters: Path | None) -> None:
    """Refuse before the first run what a run would refuse; without clusters, as far as it can be told.

    Raises:
        ClipNegativesError: as `clip_negatives.integrations.open_clip.train`.
    """
    from clip_negatives.integrations import open_clip

    for method in methods:
        options = open_clip.TrainOptions(
            clusters=clusters, sampler=method.sampler, weighting=method.weighting, temperature=method.temperature
        )
        open_clip.check([*arguments, *bias_of(method, arguments)], options)


def run(job: Job) -> dict[str, Any]:
    """Run `job` in a fresh process and return what it measured.

    A process of its own gives each run the same start and a peak memory of its own.

    Raises:
        ClipNegativesError: the run failed, and the message names its log; or its folder cannot be written.
    """
    with changing(job.folder):
        if job.folder.exists():
            shutil.rmtree(job.folder)
        job.folder.mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_in_process, args=(job,))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.kill()
        process.join()
        raise
    outcome = job.folder / "outcome.json"
    log = job.folder / "output.log"
    if not outcome.exists():
        raise ClipNegativesError(
            f"Expected the run of {job.method.name} with seed {job.seed} to finish, but its process ended with exit code "
            f"{process.exitcode}. See {log}."
        )
    result: dict[str, Any] = json.loads(outcome.read_text())
    if "error" in result:
        raise ClipNegativesError(f"The run of {job.method.name} with seed {job.seed} failed: {result['error']} See {log}.")
    return result


def _in_process(job: Job) -> None:
    """Be the process of a run: everything printed goes to its log, the outcome to a file."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with (job.folder / "output.log").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        outcome = measure(job)
    except ClipNegativesError as error:
        outcome = {"error": str(error)}
    except Exception as error:  # The traceback is in the log; the parent reports the rest.
        traceback.print_exc()
        outcome = {"error": f"{type(error).__name__}: {error}."}
    partial = job.folder / "outcome.json.partial"
    partial.write_text(json.dumps(outcome, indent=2))
    partial.replace(job.folder / "outcome.json")


def _end_with_parent() -> None:
    """End this process when the comparison is gone: the next one runs the job again, in the same folder."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def measure(job: Job) -> dict[str, Any]:
    """Train and measure in this process.

    Returns:
        The fields of a run in the JSON of a comparison, see `clip_negatives.compare.study`.
    """
    from clip_negatives.compare.evaluate import false_negatives, peak_gpu_memory, ranks
    from clip_negatives.compare.queries import write_queries
    from clip_negatives.integrations import open_clip

    batches: list[Tensor] = []
    times: list[float] = []

    def on_batch(index: Tensor) -> None:
        times.append(time.perf_counter())
        batches.append(index.clone())

    options = open_clip.TrainOptions(
        clusters=job.clusters,
        sampler=job.method.sampler,
        weighting=job.method.weighting,
        temperature=job.method.temperature,
        on_batch=on_batch,
    )
    started = time.perf_counter()
    open_clip.train(job.train_arguments, options)
    finished = time.perf_counter()
    # Taken before the evaluation, which is the same for every method.
    memory = {"peak_memory_mib": peak_memory(), "peak_gpu_memory_mib": peak_gpu_memory()}
    checkpoints = job.folder / "run" / "checkpoints"
    last = max(checkpoints.glob("epoch_*.pt"), key=epoch_of)
    figures, queries = ranks(job.model, last, job.test)
    write_queries(queries, job.folder)
    outcome = {
        "method": asdict(job.method),
        "seed": job.seed,
        "clusters": str(job.clusters),
        "steps": len(times),
        "seconds_per_step": step_seconds(times),
        "train_seconds": finished - started,
        **memory,
        "losses": losses(job.folder / "run" / "out.log"),
        **false_negatives(batches, read_clusters(job.clusters), job.method.weighting),
        **figures,
    }
    shutil.rmtree(checkpoints)  # the largest files by far, and no longer needed
    return outcome


def epoch_of(checkpoint: Path) -> int:
    """Return after how many epochs open_clip wrote a checkpoint; times of change follow the clock, which may be set back.

    Examples:
        >>> epoch_of(Path("epoch_12.pt"))
        12
    """
    return int(checkpoint.stem.removeprefix("epoch_"))


def step_seconds(times: Sequence[float]) -> float | None:
    """Return the median time between two batches; the median, as epochs begin and end between some of them."""
    return statistics.median(after - before for before, after in itertools.pairwise(times)) if len(times) > 1 else None


def peak_memory() -> float:
    """Return the peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def losses(log: Path) -> list[float]:
    """Return the losses that open_clip logged, in order."""
    marker = "Contrastive_loss: "
    lines = log.read_text().splitlines()
    return [float(line.split(marker)[1].split()[0]) for line in lines if marker in line]
