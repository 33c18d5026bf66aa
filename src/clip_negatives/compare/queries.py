"""What a run answered to each test query: kept beside its result, for examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_negatives.atomic import replaced_file, write_tensors

NAME = "queries.safetensors"
"""File in the folder of a run."""


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Hold what a model answered to the texts of the test pairs.

    Attributes:
        rank: rank of the first correct image of each text, from 1 on, int32, shape (Q,).
        top: test pair whose image stands first for each text, int32, shape (Q,).
        test: how the test pairs are read: arguments of `clip_negatives.dataset.open_pairs`.
    """

    rank: Tensor
    top: Tensor
    test: Mapping[str, Any]


def write_queries(queries: Queries, folder: Path) -> None:
    """Write them to the folder of a run, atomically.

    Raises:
        ArtifactError: they cannot be written.
    """
    tensors = {"rank": queries.rank.to(torch.int32), "top": queries.top.to(torch.int32)}
    with replaced_file(folder / NAME) as file:
        write_tensors(tensors, file, {"test": json.dumps(dict(queries.test))})


def read_queries(folder: Path) -> Queries | None:
    """Return what the run of this folder answered, or None where that is not there: earlier versions did not keep it."""
    try:
        with safe_open(folder / NAME, framework="pt") as stored:
            test = json.loads((stored.metadata() or {})["test"])
            return Queries(stored.get_tensor("rank"), stored.get_tensor("top"), test)
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
