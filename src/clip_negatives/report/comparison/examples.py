"""Queries that a method answers rightly and the baseline does not, and the other way around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.compare.methods import BASELINE
from clip_negatives.compare.queries import Queries, read_queries
from clip_negatives.compare.study import Comparison, run_folder

MOST = 6
"""Examples of each kind and method."""


@dataclass(frozen=True, slots=True)
class Example:
    """Hold one query.

    Attributes:
        query: the test pair whose text is asked; its own image is a correct answer.
        baseline: test pair whose image the baseline answers, in most seeds.
        method: the same of the method.
        baseline_right: seeds in which the baseline is right.
        method_right: seeds in which the method is right.
    """

    query: int
    baseline: int
    method: int
    baseline_right: int
    method_right: int


@dataclass(frozen=True, slots=True)
class Changed:
    """Hold what a method changed in the answers.

    Attributes:
        method: its name.
        mended: some of the queries that it mends, the clearest first.
        broken: some of those that it breaks.
        n_mended: how many it mends.
        n_broken: how many it breaks.
    """

    method: str
    mended: list[Example]
    broken: list[Example]
    n_mended: int
    n_broken: int


def read_answers(comparison: Comparison, output: Path) -> dict[str, list[Queries]]:
    """Return what each run answered, by method.

    Methods of which a run kept nothing, or answers to other queries, are left out: earlier versions kept no answers.
    """
    answers: dict[str, list[Queries]] = {}
    for name in comparison.summaries:
        runs = [run for run in comparison.runs if run["method"]["name"] == name]
        found = [read_queries(run_folder(output, name, run["seed"])) for run in runs]
        known = [one for one, run in zip(found, runs, strict=True) if one is not None and len(one.rank) == run["queries"]]
        if len(known) == len(found):
            answers[name] = known
    return answers


def changes(answers: Mapping[str, Sequence[Queries]]) -> list[Changed]:
    """Return what each method mends and breaks.

    A query is mended where the baseline is wrong at the first place in more than half of the seeds and the method is right
    in more than half; broken where it is the other way around.
    """
    base = _of(answers[BASELINE])
    found = []
    for name, runs in answers.items():
        if name == BASELINE:
            continue
        method = _of(runs)
        seeds = len(runs)
        mended = (2 * base.right < seeds) & (2 * method.right > seeds)
        broken = (2 * base.right > seeds) & (2 * method.right < seeds)
        gain = base.rank - method.rank
        found.append(
            Changed(
                name,
                _examples(mended, gain, base, method),
                _examples(broken, -gain, base, method),
                int(mended.sum()),
                int(broken.sum()),
            )
        )
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """Hold, for each query over the seeds: how often it is right, its answer in most, and the log of its mean rank."""

    right: Tensor
    top: Tensor
    rank: Tensor


def _of(runs: Sequence[Queries]) -> _Answers:
    ranks = torch.stack([run.rank for run in runs])
    tops = torch.stack([run.top for run in runs])
    return _Answers((ranks == 1).sum(dim=0), tops.mode(dim=0).values, ranks.double().mean(dim=0).log())


def _examples(which: Tensor, gain: Tensor, base: _Answers, method: _Answers) -> list[Example]:
    places = which.nonzero().flatten()
    clearest = places[gain[places].argsort(descending=True, stable=True)][:MOST]
    columns = clearest, *(part[clearest] for part in (base.top, method.top, base.right, method.right))
    return [Example(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
