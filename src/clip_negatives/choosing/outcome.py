"""The outcome of a run: the ranks of the correct answers to the queries of a fold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.choosing.menu import Candidate
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.safe_reading import read_json

DIRECTIONS = ("text_to_image", "image_to_text")


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Rank of the first correct answer to each query of a fold, from 1, int64, shape (Q,)."""

    text_to_image: Tensor
    image_to_text: Tensor


Outcomes = dict[Candidate, list[list[Outcome]]]  # by fold and seed


def mean_mrr(outcomes: Sequence[Sequence[Outcome]]) -> float:
    """Return the mean reciprocal rank, text to image, over folds and seeds."""
    means = [(1 / outcome.text_to_image).mean() for by_seed in outcomes for outcome in by_seed]
    return float(torch.stack(means).mean())


def write_outcome(outcome: Outcome, file: Path) -> None:
    """Write an outcome, atomically."""
    with replaced_file(file) as partial:
        partial.write_text(json.dumps({name: getattr(outcome, name).tolist() for name in DIRECTIONS}))


def read_outcome(file: Path, n_queries: int) -> Outcome | None:
    """Return a stored outcome, or None if it is missing or damaged."""
    try:
        stored = read_json(file, "json_bytes")
        outcome = Outcome(*(torch.tensor(stored[name], dtype=torch.int64) for name in DIRECTIONS))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return outcome if len(outcome.text_to_image) == len(outcome.image_to_text) == n_queries else None
