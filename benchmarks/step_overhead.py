"""Cost of what sees the training step, over the same tables as constant loss terms: python benchmarks/step_overhead.py.

Each case trains the small model of the tests on random pictures and words. Steps of all cases alternate, and the figure is the
median ratio of the processor times of a case and of the constant terms, in one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from conftest import machine
from losses import weights
from run import result_file, write_json
from test_training_step_benchmark import BATCH, make_step
from torch import Tensor

from clip_negatives import LossTerms, NegativesClipLoss, Step, weighting
from clip_negatives.step import BatchSamples

K = 1000  # clusters


def cases(backend: str) -> dict[str, Callable[[], None]]:
    """Return a training step for each case, the constant terms first."""
    terms = weights("weighted", BATCH, K)
    assert terms is not None

    @weighting
    def from_step(step: Step) -> LossTerms:
        return terms.take(step.samples.index)

    def observe(step: Step, losses: Tensor) -> None:
        pass

    scheduled = terms.replace(schedule=((0.0, 0.0), (1.0, 1.0)))
    given: dict[str, Any] = {
        "constant": terms,
        "scheduled": scheduled,
        "function of the step": from_step()(None),
        "observed": terms,
    }
    samples = BatchSamples(ids=torch.arange(BATCH)).at(1, 2)
    made = {}
    for name, each in {**given, "observed": terms}.items():
        loss = NegativesClipLoss(terms=each, batch_samples=lambda: samples, backend=backend)
        loss.observer = observe if name == "observed" else None
        made[name] = make_step(loss)
    return made


def ratios(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median ratio of the processor times of each case and of the first one."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number:  # the first round is a warm-up
                seconds[name].append(time.process_time() - start)
    first = next(iter(seconds.values()))
    return {
        name: statistics.median(own / other for own, other in zip(each, first, strict=True)) for name, each in seconds.items()
    }


def main() -> None:
    """Measure, print, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--small", action="store_true", help="do not write the result file of this machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {backend: ratios(cases(backend), options.rounds) for backend in ("torch", "chunked")}
    for backend, each in found.items():
        print(backend, ", ".join(f"{name} {ratio:.3f}" for name, ratio in each.items()))
    result = {**machine(), "batch_size": BATCH, "clusters": K, "rounds": options.rounds, "ratios": found}
    print(f"Results: {write_json(result_file('step-overhead.json', small=options.small), result)}")


if __name__ == "__main__":
    main()
