"""Choose the learning rate, or the fixed temperature, of the baseline on validation pairs, held out of the training data."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_negatives.advice import argument
from clip_negatives.compare.arguments import open_described
from clip_negatives.compare.evaluate import items_of
from clip_negatives.compare.methods import BASELINE
from clip_negatives.compare.reuse import OnRun, finished
from clip_negatives.compare.run import Job, provenance_of
from clip_negatives.dataset import TablePairs
from clip_negatives.dataset.columns import IMAGE, SEPARATOR, TEXT
from clip_negatives.errors import DataError
from clip_negatives.host.method import Method
from clip_negatives.integrations.open_clip.arguments import parsed
from clip_negatives.storage.ownership import claim_work, replaced_file

RATES = (1 / 3, 1.0, 3.0)  # candidates of the learning rate, relative to the effective one
SHARE, MOST = 0.1, 2000  # validation pairs: share of the training pairs, and their number at most
FIGURE = "text_to_image_mrr"
COLUMNS = {"image_column": IMAGE, "text_column": TEXT, "group_column": "group", "separator": SEPARATOR}


@dataclass(frozen=True, slots=True)
class Tuned:
    """A tuned value.

    Attributes:
        name: "lr" or "temperature".
        value: the chosen candidate.
        scores: MRR of each candidate on the validation pairs, one seed.
        pairs: number of validation pairs.
    """

    name: str
    value: float
    scores: dict[str, float]
    pairs: int

    def __str__(self) -> str:
        scores = ", ".join(f"{candidate}: {100 * score:.1f} %" for candidate, score in self.scores.items())
        values = sorted(map(float, self.scores))
        edge = (
            " It is the first or last candidate: a better one may lie outside." if self.value in (values[0], values[-1]) else ""
        )
        words = {"lr": "learning rate", "temperature": "fixed temperature"}[self.name]
        return f"The {words} {self.value:g} has the best MRR of {BASELINE} on {self.pairs:,} validation pairs ({scores}).{edge}"


class Validation:
    """Training pairs without the validation pairs, and the validation pairs.

    All pairs of an item are on one side (in data without groups: of a text). The draw depends only on the number of items.

    Args:
        train: description of the training pairs, see `clip_negatives.compare.arguments.resolve_data`.
        output: folder of the comparison.

    Raises:
        DataError: the training data are not a table with image files, or have too few items.
    """

    def __init__(self, train: Mapping[str, Any], output: Path) -> None:
        source = open_described(train)
        if not isinstance(source, TablePairs) or source.image_paths is None:
            reason = "tuning needs a table with paths of images, to hold out validation pairs"
            repair = f"Tune on a table, or omit {argument('tune_lr')} and give a single value to {argument('temperatures')}"
            raise DataError(f"{train['location']}: {reason}. {repair}.")
        items = items_of(source).numpy()
        order = np.random.default_rng(0).permutation(np.unique(items))
        counts = np.cumsum([np.count_nonzero(items == item) for item in order])
        held_out = order[counts <= min(MOST, SHARE * len(items))]
        if len(held_out) < 2:
            raise DataError(f"{train['location']} has too few items to hold out validation pairs. Use more training data.")
        is_held_out = np.isin(items, held_out)
        self.n_pairs = int(is_held_out.sum())
        folder = output / "tuning"
        claim_work(folder)
        rows = {"train": np.flatnonzero(~is_held_out), "validation": np.flatnonzero(is_held_out)}
        for name, kept in rows.items():
            _write(source, kept.tolist(), folder / f"{name}.csv")
        self.folder = folder
        group = "group" if source.groups is not None else None
        described = {**COLUMNS, "dataset_type": "csv", "group_column": group}
        self.train: dict[str, Any] = {**described, "location": str(folder / "train.csv")}
        self.test: dict[str, Any] = {**described, "location": str(folder / "validation.csv")}


def tune(name: str, candidates: Sequence[float], line: Sequence[str], validation: Validation, on_run: OnRun | None) -> Tuned:
    """Train the baseline once with each candidate, and return the one with the best MRR on the validation pairs.

    Args:
        name: "lr" or "temperature".
        candidates: values to try.
        line: arguments of open_clip.
        validation: the pairs.
        on_run: see `clip_negatives.compare.compare`; finished runs are reused.
    """
    fingerprints = [open_described(data).fingerprint() for data in (validation.train, validation.test)]
    data = dict(zip(("training", "test"), fingerprints, strict=True))
    data_arguments = ["--train-data", validation.train["location"], "--dataset-type", "csv", "--csv-separator", SEPARATOR]
    line = [*line, *data_arguments, "--csv-img-key", IMAGE, "--csv-caption-key", TEXT]
    jobs = []
    for candidate in candidates:
        method = Method.parse(BASELINE if name == "lr" else f"{BASELINE}@{candidate:g}")
        arguments = (*line, "--lr", f"{candidate:g}") if name == "lr" else tuple(line)
        label = f"tuning {name} {candidate:g}: {BASELINE}"
        folder = validation.folder / f"{name}-{candidate:g}"
        jobs.append(Job(label, method, 0, arguments, None, validation.test, fingerprints[1], folder))
    outcomes, _ = finished(jobs, lambda: [provenance_of(job, None, data) for job in jobs], lambda: None, on_run)
    scores = {f"{candidate:g}": outcome[FIGURE] for candidate, outcome in zip(candidates, outcomes, strict=True)}
    best = max(scores, key=scores.__getitem__)
    return Tuned(name, float(best), scores, validation.n_pairs)


def rates_around(line: Sequence[str]) -> list[float]:
    """Return the candidates of the learning rate, rounded to three digits."""
    rate = parsed(line).lr
    return [round(factor * rate, 2 - math.floor(math.log10(factor * rate))) for factor in RATES]


def _write(source: TablePairs, rows: Sequence[int], file: Path) -> None:
    """Write rows of a table as csv."""
    columns = {IMAGE: source.image_paths, TEXT: source.texts, "group": source.groups}
    known = {name: values for name, values in columns.items() if values is not None}
    with replaced_file(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=SEPARATOR, lineterminator="\n")
        writer.writerow(known)
        writer.writerows([values[row] for values in known.values()] for row in rows)
