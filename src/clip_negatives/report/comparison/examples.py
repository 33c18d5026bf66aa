"""Test queries that a method answers correctly and the baseline does not, or the reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.compare.methods import BASELINE
from clip_negatives.compare.queries import Queries, read_queries
from clip_negatives.compare.results import Comparison
from clip_negatives.compare.study import run_folder

MAX_EXAMPLES = 6  # per kind and method


class Example(NamedTuple):
    """A test query and its answers."""

    query: int  # test pair whose text is the query; its own image is a correct answer
    baseline: int  # test pair whose image the baseline ranks first, in most seeds
    method: int
    baseline_right: int  # number of seeds in which the baseline is correct
    method_right: int


class Changed(NamedTuple):
    """Queries that a method fixes or breaks: examples (largest change of rank first) and numbers."""

    method: str
    fixed: list[Example]
    broken: list[Example]
    n_fixed: int
    n_broken: int


class _Answers(NamedTuple):
    """Answers over all seeds: most frequent first image, number of correct seeds, log of the mean rank; each of shape (Q,)."""

    top: Tensor
    right: Tensor
    rank: Tensor


def read_answers(comparison: Comparison, output: Path) -> dict[str, list[Queries]]:
    """Return the answers of the runs by method, without methods that lack the answers of a run to the same queries."""
    answers: dict[str, list[Queries]] = {}
    n_queries = comparison.runs[0]["queries"]
    for name in comparison.summaries:
        runs = [run for run in comparison.runs if run["method"]["name"] == name]
        queries = [read_queries(run_folder(output, name, run["seed"])) for run in runs]
        known = [answer for answer in queries if answer is not None and len(answer.rank) == n_queries]
        if len(known) == len(runs):
            answers[name] = known
    return answers


def changes(answers: Mapping[str, Sequence[Queries]]) -> list[Changed]:
    """Return the queries that each method fixes (baseline wrong in most seeds, method correct in most) and breaks."""
    base, seeds, changed = _combined(answers[BASELINE]), len(answers[BASELINE]), []
    for name in (name for name in answers if name != BASELINE):
        method = _combined(answers[name])
        fixed = (2 * base.right < seeds) & (2 * method.right > seeds)
        broken = (2 * base.right > seeds) & (2 * method.right < seeds)
        gain = base.rank - method.rank
        examples = _examples(fixed, gain, base, method), _examples(broken, -gain, base, method)
        changed.append(Changed(name, *examples, int(fixed.sum()), int(broken.sum())))
    return changed


def _combined(runs: Sequence[Queries]) -> _Answers:
    ranks, tops = (torch.stack([getattr(run, name) for run in runs]) for name in ("rank", "top"))
    return _Answers(tops.mode(dim=0).values, (ranks == 1).sum(dim=0), ranks.double().mean(dim=0).log())


def _examples(matches: Tensor, gain: Tensor, base: _Answers, method: _Answers) -> list[Example]:
    places = matches.nonzero().flatten()
    clearest = places[gain[places].argsort(descending=True, stable=True)][:MAX_EXAMPLES]
    columns = clearest, *(part[clearest] for part in (base.top, method.top, base.right, method.right))
    return [Example(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
