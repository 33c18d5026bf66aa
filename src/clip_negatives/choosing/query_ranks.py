"""Ranks of the correct answers to the queries of a fold, and their files."""

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
class QueryRanks:
    """Rank of the first correct answer to each query of a fold, from 1, int64, shape (Q,)."""

    text_to_image: Tensor
    image_to_text: Tensor


RanksByCandidate = dict[Candidate, list[list[QueryRanks]]]  # by fold and seed


def mean_mrr(ranks: Sequence[Sequence[QueryRanks]]) -> float:
    """Return the mean reciprocal rank, text to image, over folds and seeds."""
    means = [(1 / run.text_to_image).mean() for by_seed in ranks for run in by_seed]
    return float(torch.stack(means).mean())


def write_ranks(ranks: QueryRanks, file: Path) -> None:
    """Write the ranks of a run, atomically."""
    with replaced_file(file) as partial:
        partial.write_text(json.dumps({name: getattr(ranks, name).tolist() for name in DIRECTIONS}))


def read_ranks(file: Path, n_queries: int) -> QueryRanks | None:
    """Return the stored ranks of a run, or None if the file is missing or damaged."""
    try:
        stored = read_json(file, "json_bytes")
        ranks = QueryRanks(*(torch.tensor(stored[name], dtype=torch.int64) for name in DIRECTIONS))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ranks if len(ranks.text_to_image) == len(ranks.image_to_text) == n_queries else None
