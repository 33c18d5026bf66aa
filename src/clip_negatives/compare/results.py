"""Result of a comparison: runs, their summaries, and gains over the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clip_negatives.compare.methods import BASELINE, fixed_baseline
from clip_negatives.compare.queries import Queries
from clip_negatives.compare.verdict import verdict
from clip_negatives.metrics.statistics import Gain, gains, hits, reciprocal
from clip_negatives.storage.provenance import Record
from clip_negatives.storage.safe_reading import read_json

DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
TOP_K = (1, 5, 10)  # the k of Rank@k
SCORES = ("mrr", *(f"rank_{k}" for k in TOP_K))
RANKS = tuple(f"{direction}_{score}" for direction in DIRECTIONS for score in SCORES)
# Fields of a run that are summarised over seeds.
FIGURES = (
    *RANKS,
    *("seconds_per_step", "peak_memory_mib"),
    *("false_negatives_per_anchor", "false_negatives_kept_per_anchor", "false_weight", "removed_share"),
)
OPTIONAL = {"seconds_per_step", "false_negatives_kept_per_anchor", "false_weight", "removed_share"}  # figures that may be None
SHOWN = ("seed", "steps", "queries", *(f"chance_rank_{k}" for k in TOP_K))  # further numbers that every run has


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and standard deviation (divisor n - 1) of a figure over seeds; `spread` is None for a single seed."""

    mean: float
    spread: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference to the baseline, with an simultaneous 95 % confidence interval (None for a single seed)."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        setting: arguments, data, clusters, versions and machine.
        runs: fields of each run, ordered by seed, then method.
        summaries: mean and spread of each figure, by method.
        differences: difference of MRR and Rank@k to the baseline, by method and figure.
        gains: relative gain in MRR, text to image, over the baseline, by method.
        gains_over_fixed: the same over the baseline with a fixed temperature; empty without this baseline.
        verdict: the result in a few sentences.
    """

    setting: dict[str, Any]
    runs: list[dict[str, Any]]
    summaries: dict[str, dict[str, Summary]]
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)
    gains: dict[str, Gain] = field(default_factory=dict)
    gains_over_fixed: dict[str, Gain] = field(default_factory=dict)
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as a JSON object, verdict first."""
        fields = asdict(self)
        return {"verdict": fields.pop("verdict"), **fields}


def summarised(
    setting: dict[str, Any], runs: list[dict[str, Any]], names: Sequence[str], answers: Mapping[str, Sequence[Queries]]
) -> Comparison:
    """Return the outcome; `answers` are those of the runs of each method to the test queries, by seed."""
    summaries = {name: _summaries([run for run in runs if run["method"]["name"] == name]) for name in names}
    items = answers[BASELINE][0].item.numpy()
    if len(set(items.tolist())) < 2:  # of one item, no interval is known
        return Comparison(setting, runs, summaries)
    differences: dict[str, dict[str, Difference]] = {name: {} for name in names if name != BASELINE}
    for figure in RANKS:
        for name, result in gains(_scores(answers, figure), BASELINE, items, relative=False).items():
            differences[name][figure] = Difference(result.estimate, result.low, result.high)
    scores = _scores(answers, "text_to_image_mrr")
    over_baseline = gains(scores, BASELINE, items)
    fixed, over_fixed = fixed_baseline(names), {}
    if fixed is not None:
        over_fixed = gains({name: values for name, values in scores.items() if name != BASELINE}, fixed, items)
    sentence = verdict(over_baseline, over_fixed, fixed, len(answers[BASELINE]), len(set(items.tolist())))
    return Comparison(setting, runs, summaries, differences, over_baseline, over_fixed, sentence)


def read_run(file: Path) -> tuple[Record, dict[str, Any]] | None:
    """Return provenance and outcome of a run from its result file, or None if the file is missing or damaged."""
    try:
        stored = read_json(file, "json_bytes")
    except (OSError, ValueError):
        return None
    identity, outcome = stored.get("identity"), stored.get("run")
    if isinstance(identity, dict) and isinstance(outcome, dict) and _is_outcome(outcome):
        return identity, outcome
    return None


def rank_figures(answers: Queries) -> dict[str, float]:
    """Return MRR and Rank@k of both directions."""
    figures = {}
    for direction, ranks in zip(DIRECTIONS, (answers.rank, answers.image_rank), strict=True):
        figures[f"{direction}_mrr"] = float(reciprocal(ranks.numpy()).mean())
        figures |= {f"{direction}_rank_{k}": float(hits(ranks.numpy(), k).mean()) for k in TOP_K}
    return figures


def _scores(answers: Mapping[str, Sequence[Queries]], figure: str) -> dict[str, Any]:
    """Return the score of every query by method, shape (seeds, queries); its mean is `figure`."""
    side = "rank" if figure.startswith("text_to_image") else "image_rank"
    ranks = {name: np.stack([getattr(run, side).numpy() for run in runs]) for name, runs in answers.items()}
    k = None if figure.endswith("mrr") else int(figure.rpartition("_")[2])
    return {name: reciprocal(values) if k is None else hits(values, k) for name, values in ranks.items()}


def _summaries(runs: Sequence[Mapping[str, Any]]) -> dict[str, Summary]:
    """Return mean and spread of the figures that all runs have: a weighting of each step has no removed share."""
    values = {figure: [run[figure] for run in runs] for figure in FIGURES}
    return {
        figure: Summary(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)
        for figure, numbers in values.items()
        if None not in numbers
    }


def _is_outcome(run: dict[str, Any]) -> bool:
    """Return whether a run has every field that is summarised or shown, each of the right type."""
    method, losses = run.get("method"), run.get("losses")
    return (
        isinstance(method, dict)
        and all(isinstance(method.get(name), str) for name in ("name", "sampler", "weighting"))
        and (method.get("temperature", "") is None or _is_number(method.get("temperature")))
        and isinstance(losses, list)
        and all(isinstance(loss, int | float) for loss in losses)  # NaN too
        and all(name in run and (run[name] is None or _is_number(run[name])) for name in FIGURES)
        and all(_is_number(run.get(name)) for name in (*set(FIGURES) - OPTIONAL, *SHOWN))
        and isinstance(run.get("false_negatives_truth"), str)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
