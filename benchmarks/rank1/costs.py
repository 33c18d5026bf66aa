"""Measure the cost of a training step of each method of heads: python benchmarks/rank1/costs.py --chosen RESULTS --output FILE.

The time is processor time of one thread, the minimum of some rounds, because it depends least on other work of the machine.
Every method runs in a process of its own, forked from one with the data, so that its peak memory is its own. The candidates are
those that the study chose, on the training data of its test.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from folds import EMOJI, Fold, batch_size, features
from head_training import Job, train
from run import write_json
from studies import parse, read_data

from clip_negatives.host import registry

STEPS, ROUNDS = 24, 2  # minimum number of timed steps, after one epoch to warm up, and number of rounds
_FOLD: list[Fold] = []


def measured(task: tuple[dict[str, Any], Job]) -> dict[str, float]:
    """Return the processor time of a step in milliseconds, and the peak memory in MiB."""
    rounds = [_round(*task) for _ in range(ROUNDS)]
    return {"cpu_ms": min(ms for ms, _ in rounds), "peak_memory_mib": max(peak for _, peak in rounds)}


def _round(study: dict[str, Any], job: Job) -> tuple[float, float]:
    times: list[float] = []
    # Whole epochs, because some samplers plan at the start of an epoch.
    epoch = max(1, _FOLD[0].clusters.n_samples // batch_size(study, job.data))
    steps = -(-STEPS // epoch) * epoch
    outcome = train({**study, "steps": epoch + steps}, _FOLD[0], job, lambda *_: times.append(time.process_time()))
    return 1000 * (times[-1] - times[epoch]) / steps, outcome["peak_memory_mib"]


def costs_of(study: dict[str, Any], data: str, chosen: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the costs of each method on a data set; `chosen` is the data set in the result file of heads.py."""
    features(study, study["data"][data].get("source", EMOJI))  # encode once, before the processes are forked
    _FOLD[:] = [Fold.of(study, data, "test")]
    jobs = {name: Job(data, "test", row["candidate"], chosen["lr"], 0) for name, row in chosen["methods"].items()}
    registry.default_registry()  # import the plugins once, not in each process
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        return dict(zip(jobs, pool.imap(measured, [(study, job) for job in jobs.values()], chunksize=1), strict=True))


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chosen", type=Path, required=True, help="result file of heads.py")
    parser.add_argument("--data", nargs="+", help="data sets of the study; default: all")
    options, study = parse(parser)
    torch.set_num_threads(1)
    chosen = read_data(options.chosen)
    if unknown := set(options.data or ()) - set(chosen):
        raise SystemExit(f"{options.chosen} has no data set {', '.join(sorted(unknown))} (it has: {', '.join(chosen)}).")
    result = {data: costs_of(study, data, chosen[data]) for data in options.data or chosen}
    write_json(options.output, {"steps": STEPS, "rounds": ROUNDS, "data": read_data(options.output) | result})


if __name__ == "__main__":
    main()
