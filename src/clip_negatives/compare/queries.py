"""What a run answered to each test query: kept beside its result, for examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.atomic import replaced_file, write_tensors
from clip_negatives.reading import Kind, read_tensors

NAME = "queries.safetensors"
"""File in the folder of a run."""


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Hold what a model answered to the texts of the test pairs.

    Attributes:
        rank: rank of the first correct image of each text, from 1 on, int32, shape (Q,).
        top: test pair whose image stands first for each text, int32, shape (Q,).
    """

    rank: Tensor
    top: Tensor


def write_queries(queries: Queries, folder: Path) -> None:
    """Write them to the folder of a run, atomically.

    Raises:
        ArtifactError: they cannot be written.
    """
    tensors = {"rank": queries.rank.to(torch.int32), "top": queries.top.to(torch.int32)}
    with replaced_file(folder / NAME) as file:
        write_tensors(tensors, file)


def read_queries(folder: Path) -> Queries | None:
    """Return what the run of this folder answered, or None where that is not there, as of earlier versions, or damaged."""
    kinds: dict[str, Kind] = {"rank": (("int32",), 1), "top": (("int32",), 1)}
    try:
        tensors = read_tensors(folder / NAME, kinds)
    except (OSError, ValueError):
        return None
    rank, top = tensors["rank"].clone(), tensors["top"].clone()
    sound = 0 < len(rank) == len(top) and int(rank.min()) > 0 and 0 <= int(top.min()) <= int(top.max()) < len(top)
    return Queries(rank, top) if sound else None
