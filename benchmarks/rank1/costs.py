"""Measure what a step of every row of heads costs: python benchmarks/rank1/costs.py --chosen RESULTS --output FILE.

Time of the processor, of one thread, so that other work on the machine hardly counts; the least of some rounds. Every row has a
process of its own, forked from one that holds the data, so that its peak of memory is its own too. What is measured is the
candidate that the study chose, on the data that its test trains on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import tomllib
import torch
from folds import CACHE, EMOJI, Fold, batch_size, features
from head_training import Job, train

from clip_negatives import registry
from clip_negatives.atomic import replaced_file

HERE = Path(__file__).parent
STEPS, ROUNDS = 24, 2
"""Steps that are counted at least, after an epoch that is not, and how often."""

_FOLD: list[Fold] = []


def measured(task: tuple[dict[str, Any], Job]) -> dict[str, float]:
    """Return processor time of a step, in milliseconds, and the peak of memory, in MiB."""
    rounds = [_round(*task) for _ in range(ROUNDS)]
    return {"cpu_ms": min(ms for ms, _ in rounds), "peak_memory_mib": max(peak for _, peak in rounds)}


def _round(study: dict[str, Any], job: Job) -> tuple[float, float]:
    times: list[float] = []
    # Whole epochs: samplers that plan do so at their beginning.
    epoch = max(1, _FOLD[0].clusters.n_samples // batch_size(study, job.data))
    steps = -(-STEPS // epoch) * epoch
    outcome = train({**study, "steps": epoch + steps}, _FOLD[0], job, lambda *_: times.append(time.process_time()))
    return 1000 * (times[-1] - times[epoch]) / steps, outcome["peak_memory_mib"]


def costs_of(study: dict[str, Any], data: str, chosen: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the costs of each row of a data set.

    Args:
        study: the study.
        data: name in it.
        chosen: what its result file says of the data set.
    """
    features(study, study["data"][data].get("source", EMOJI))  # once, before any process asks for them
    _FOLD[:] = [Fold.of(study, data, "test")]
    jobs = {name: Job(data, "test", row["candidate"], chosen["lr"], 0) for name, row in chosen["methods"].items()}
    registry.default_registry()  # imports the plugins, which would take each process seconds
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        return dict(zip(jobs, pool.imap(measured, [(study, job) for job in jobs.values()], chunksize=1), strict=True))


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=HERE / "heads.toml")
    parser.add_argument("--chosen", type=Path, required=True, help="result file of heads.py, which says what was chosen")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", nargs="+", help="data sets of the study; default: all")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of features")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = tomllib.loads(options.study.read_text()) | {"cache": str(options.cache)}
    chosen = json.loads(options.chosen.read_text())["data"]
    if unknown := set(options.data or ()) - set(chosen):
        raise SystemExit(f"Expected data sets among {', '.join(chosen)}, got {', '.join(sorted(unknown))}.")
    before = json.loads(options.output.read_text())["data"] if options.output.exists() else {}
    result = before | {data: costs_of(study, data, chosen[data]) for data in options.data or chosen}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(options.output) as partial:
        partial.write_text(json.dumps({"steps": STEPS, "rounds": ROUNDS, "data": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
