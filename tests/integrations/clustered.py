"""Data of a few random samples, each of which shows its own index, and clusters of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_negatives import write_clusters
from clip_negatives.interfaces import Clusters
from tests.conftest import make_clusters

N = 48
BATCH = 8


def write_folder(path: Path, n: int = N, groups: int = 6) -> tuple[Path, Clusters]:
    """Return a clusters folder of n samples and what is in it; keys are row numbers, as of a csv file."""
    clusters = make_clusters(n, k_image=5, k_text=4)
    columns = {"key": [str(row) for row in range(n)], "text": [f"positive{row}" for row in range(n)]}
    columns["group"] = [f"group {row % groups}" for row in range(n)]
    write_clusters(path, clusters, pa.table(columns), {})
    return path, clusters


def picture(row: int) -> Tensor:
    """Return an image, shape (3, 8, 8), whose first pixel says which it is."""
    image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(row))
    image[:, 0, 0] = row
    return image


def rows_of(pictures: Tensor) -> Tensor:
    """Return which pictures a batch holds, int64, shape (B,)."""
    return pictures[:, 0, 0, 0].round().long()


class Pictures(Dataset):
    """Give n pictures with a text of four words each, as a mapping or as a tuple."""

    def __init__(self, n: int = N, *, mapping: bool = True) -> None:
        self.n, self.mapping = n, mapping

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int):
        words = torch.randint(3, 20, (4,), generator=torch.Generator().manual_seed(row))
        words[-1] = 2
        return {"pixel_values": picture(row), "input_ids": words} if self.mapping else (picture(row), words)
