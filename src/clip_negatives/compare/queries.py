"""The ranks of all test queries of a run, stored for the statistics and for the examples of the report."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.safe_reading import read_tensors

NAME = "queries.safetensors"  # in the folder of a run


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """A model's answers to the queries, which are the texts and the images of the test pairs. Tensors are int32, shape (Q,).

    Attributes:
        rank: rank of the first correct image of each text, from 1.
        image_rank: rank of the first correct text of each image, from 1.
        top: test pair whose image ranks first for each text.
        item: id of the item of each pair.
    """

    rank: Tensor
    image_rank: Tensor
    top: Tensor
    item: Tensor


NAMES = tuple(field.name for field in fields(Queries))


def write_queries(queries: Queries, folder: Path) -> None:
    """Write the answers to the folder of a run, atomically."""
    with replaced_file(folder / NAME) as file:
        write_tensors({name: getattr(queries, name).to(torch.int32) for name in NAMES}, file)


def read_queries(folder: Path) -> Queries | None:
    """Return the answers in the folder of a run, or None if they are missing or damaged."""
    try:
        tensors = read_tensors(folder / NAME, dict.fromkeys(NAMES, (("int32",), 1)))
    except (OSError, ValueError):
        return None
    queries = Queries(**{name: tensors[name].clone() for name in NAMES})
    n = len(queries.rank)
    if n == 0 or any(len(getattr(queries, name)) != n for name in NAMES):
        return None
    ranks = torch.stack([queries.rank, queries.image_rank])
    is_valid = int(ranks.min()) >= 1 and int(ranks.max()) <= n and int(queries.top.min()) >= 0 and int(queries.top.max()) < n
    return queries if is_valid else None
