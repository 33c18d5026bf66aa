"""Answers of a run to the test queries, stored for the examples of the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.safe_reading import read_tensors

NAME = "queries.safetensors"  # in the folder of a run


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """A model's answers to the text queries, which are the texts of the test pairs.

    Attributes:
        rank: rank of the first correct image of each text, from 1, int32, shape (Q,).
        top: test pair whose image ranks first for each text, int32, shape (Q,).
    """

    rank: Tensor
    top: Tensor


def write_queries(queries: Queries, folder: Path) -> None:
    """Write the answers to the folder of a run, atomically."""
    with replaced_file(folder / NAME) as file:
        write_tensors({"rank": queries.rank.to(torch.int32), "top": queries.top.to(torch.int32)}, file)


def read_queries(folder: Path) -> Queries | None:
    """Return the answers in the folder of a run, or None if they are missing or damaged."""
    try:
        tensors = read_tensors(folder / NAME, {"rank": (("int32",), 1), "top": (("int32",), 1)})
    except (OSError, ValueError):
        return None
    rank, top = tensors["rank"].clone(), tensors["top"].clone()
    valid = 0 < len(rank) == len(top) and int(rank.min()) > 0 and 0 <= int(top.min()) <= int(top.max()) < len(top)
    return Queries(rank, top) if valid else None
