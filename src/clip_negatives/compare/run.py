"""One run of a comparison: train a method with a seed in its own process, then measure the model."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives.advice import named
from clip_negatives.compare.arguments import open_described
from clip_negatives.compare.queries import NAME as QUERIES
from clip_negatives.distributed.child import end_with_parent
from clip_negatives.errors import ClipNegativesError, DataError
from clip_negatives.host.method import Method
from clip_negatives.printing import printable
from clip_negatives.storage.ownership import claim_work, move_from_work, remove_inside, replaced_file

if TYPE_CHECKING:
    from torch import Tensor

    from clip_negatives.step import BatchSamples
    from clip_negatives.storage.clusters_folder import ClustersFolder

# The fork server imports these modules once for all runs; their import starts no threads.
PRELOADED = ("clip_negatives.integrations.open_clip.seam", "clip_negatives.metrics", "clip_negatives.compare.evaluate")


RESULT = "result.json"  # provenance and outcome of a complete run
OWN_FILES = (QUERIES, "outcome.json", "output.log", "run", RESULT)  # in the folder of a run; the last one completes the run
NEW = "new"  # subfolder for a new run, until it is complete


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a comparison.

    Attributes:
        name: the method as the user wrote it.
        arguments: arguments of open_clip_train, without name, logs and seed.
        test: description of the test pairs for `clip_negatives.compare.arguments.open_described`.
        test_fingerprint: digest of the test pairs, the same for all runs.
        clusters: clusters of the training pairs; None if the method uses none.
        folder: folder of this run; the files of a new run are in `new` until it is complete.
    """

    name: str
    method: Method
    seed: int
    arguments: tuple[str, ...]
    clusters: Path | None
    test: dict[str, Any]
    test_fingerprint: str
    folder: Path

    @property
    def new(self) -> Path:
        """Return the folder of the run until it is complete."""
        return self.folder / NEW

    @property
    def method_fields(self) -> dict[str, Any]:
        """Return the method in the form that the results store."""
        return {"name": self.name, **asdict(self.method)}

    @property
    def train_arguments(self) -> list[str]:
        """Return the arguments of open_clip_train, without name and logs."""
        return [*_with_bias(self.arguments, self.method), "--seed", str(self.seed)]


def check_methods(methods: Iterable[Method], arguments: Sequence[str], clusters: Path | None) -> None:
    """Check all methods before the first run; without clusters, skip the checks that need them."""
    from clip_negatives.integrations import open_clip

    for method in methods:
        options = open_clip.TrainOptions(**asdict(method), clusters=clusters)
        open_clip.check(_with_bias(arguments, method), options)


def provenance_of(job: Job, folder: ClustersFolder | None, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance record of a job; `data` has the digests of training and test pairs."""
    from clip_negatives.integrations import open_clip

    return open_clip.provenance(job.train_arguments, open_clip.TrainOptions(**asdict(job.method)), folder, data)


def run(job: Job) -> dict[str, Any]:
    """Run `job` in a new process, to measure its own peak memory, and return the measurements.

    The process writes its files into `job.new`.

    Raises:
        ClipNegativesError: the run failed; the message has the path of its log.
    """
    job.new.mkdir()
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
    outcome, log = job.new / "outcome.json", job.new / "output.log"
    if outcome.exists():
        result: dict[str, Any] = json.loads(outcome.read_text())
    else:
        result = {"error": f"the process ended with exit code {process.exitcode}."}
    if "error" in result:
        raise ClipNegativesError(f"The run of {job.name} with seed {job.seed} failed: {result['error']} See {log}.")
    return result


def settle(folder: Path) -> None:
    """Move the files of a complete new run into `folder`, or remove an incomplete new run. Safe to repeat after a kill."""
    claim_work(folder)
    new = folder / NEW
    if (new / RESULT).exists():
        for name in OWN_FILES:
            if (new / name).exists():
                remove_inside(folder, [folder / name])
                move_from_work([new / name], folder)
    remove_inside(folder, [new])


def _in_process(job: Job) -> None:
    """Run the job in this process: write all output to the log, and the outcome to a file."""
    end_with_parent()
    with (job.new / "output.log").open("ab", buffering=0) as log:
        for descriptor in (1, 2):  # stdout and stderr; `sys.stdout` is None if the user closed stdout
            os.dup2(log.fileno(), descriptor)
    try:
        outcome = measure(job)
    except ClipNegativesError as error:
        outcome = {"error": str(error)}
    except Exception as error:  # the log has the traceback
        lines = (f"{printable(line)}\n" for line in traceback.format_exc().split("\n"))
        os.write(2, "".join(lines).encode())
        outcome = {"error": f"{type(error).__name__}: {error}."}
    with replaced_file(job.new / "outcome.json") as file:
        file.write_text(json.dumps(outcome, indent=2))


def measure(job: Job) -> dict[str, Any]:
    """Train and measure in this process; return the fields of a run for the results of the comparison."""
    import torch

    from clip_negatives.compare.evaluate import clusters_of, false_negatives, ranks
    from clip_negatives.compare.queries import write_queries
    from clip_negatives.integrations import open_clip

    batches: list[Tensor] = []
    times: list[float] = []

    def on_batch(samples: BatchSamples) -> None:
        times.append(time.perf_counter())
        if samples.ids is not None:
            batches.append(samples.ids.clone())

    options = open_clip.TrainOptions(**asdict(job.method), clusters=job.clusters, on_batch=on_batch)
    started = time.perf_counter()
    with named({"resume": "the same command"}):
        open_clip.train([*job.train_arguments, "--logs", str(job.new), "--name", "run"], options)
    seconds = time.perf_counter() - started
    # Measured before the evaluation, whose memory does not depend on the method.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    gpu_memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    checkpoints = job.new / "run" / "checkpoints"
    _check_test_data(job)
    figures, queries = ranks(job.train_arguments, max(checkpoints.glob("epoch_*.pt"), key=epoch_of), job.test)
    _check_test_data(job)
    write_queries(queries, job.new)
    durations = [end - start for start, end in itertools.pairwise(times)]
    outcome = {
        "method": job.method_fields,
        "seed": job.seed,
        "clusters": None if job.clusters is None else str(job.clusters),
        "steps": len(times),
        # The median ignores the pauses between epochs.
        "seconds_per_step": statistics.median(durations) if durations else None,
        "train_seconds": seconds,
        "peak_memory_mib": memory,
        "peak_gpu_memory_mib": gpu_memory,
        "losses": _losses(job.new / "run" / "out.log"),
        **false_negatives(batches, clusters_of(job.clusters, job.train_arguments), job.method.weighting),
        **figures,
    }
    remove_inside(job.folder, [checkpoints])  # the largest files by far
    return outcome


def _check_test_data(job: Job) -> None:
    """Raise DataError if the test pairs changed after the comparison started."""
    if open_described(job.test).fingerprint() != job.test_fingerprint:
        raise DataError(
            f"The test pairs in {job.test['location']} changed while the comparison ran, so its runs cannot be compared. Start "
            "the comparison again."
        )


def epoch_of(checkpoint: Path) -> int:
    """Return the epoch in the name of a checkpoint, ``epoch_12.pt``; modification times are not reliable."""
    return int(checkpoint.stem.removeprefix("epoch_"))


def _with_bias(arguments: Sequence[str], method: Method) -> list[str]:
    """Return the arguments, with --siglip if the weighting of the method needs a logit bias."""
    return [*arguments, *(["--siglip"] if method.plugins[1].requires_logit_bias else [])]


def _losses(log: Path) -> list[float]:
    """Return the losses that open_clip logged."""
    marker = "Contrastive_loss: "
    return [float(line.split(marker)[1].split()[0]) for line in log.read_text().splitlines() if marker in line]
