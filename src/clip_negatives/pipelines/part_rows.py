"""A random sample of the features in encoded parts; only the sampled rows are read, also from an object store."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_negatives.errors import ArtifactError
from clip_negatives.progress import stage
from clip_negatives.storage.task_folder import CONNECTIONS, TaskFolder

HEADER_BYTES = 1024  # at least the header of an npy file
GAP_BYTES = 2**16  # rows this far apart are read from an object store in one request


def quotas(counts: Sequence[int], size: int) -> list[int]:
    """Return the number of samples to draw from each part, in proportion to the counts; they add up to `size`.

    >>> quotas([10, 0, 20, 10], 8)
    [2, 0, 4, 2]
    """
    total, before, drawn = sum(counts), 0, []
    for count in counts:
        drawn.append((before + count) * size // total - before * size // total)
        before += count
    return drawn


def drawn_rows(count: int, quota: int, seed: int, number: int) -> NDArray[np.int64]:
    """Return `quota` random rows of a part with `count` rows, ascending; they depend on the seed and the number of the part."""
    return np.sort(np.random.default_rng((seed, number)).choice(count, quota, replace=False))


def sampled_features(folder: TaskFolder, side: str, counts: Sequence[int], size: int, seed: int, scratch: Path) -> Tensor:
    """Return the features of `size` random samples, float32, memory-mapped from a file in the folder `scratch`."""
    drawn = quotas(counts, size)
    stops = np.cumsum(drawn)
    used = [number for number, quota in enumerate(drawn) if quota]

    def rows(number: int) -> NDArray[Any]:
        return read_rows(folder, folder.names[number], side, drawn_rows(counts[number], drawn[number], seed, number))

    mapped = np.lib.format.open_memmap(scratch / f"{side}.npy", "w+", np.float32, (size, rows(used[0]).shape[1]))

    def fill(number: int) -> None:
        mapped[stops[number] - drawn[number] : stops[number]] = rows(number)

    with stage(f"Reading sampled {side}s", len(used), "parts") as running, ThreadPoolExecutor(CONNECTIONS) as pool:
        for _ in pool.map(fill, used):
            running.advance()
    return torch.from_numpy(mapped)


def read_rows(folder: TaskFolder, name: str, side: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return rows of the features of a part, in ascending order; ArtifactError if the file is damaged."""
    try:
        if folder.is_local:
            stored = np.load(folder.local(name, f"{side}.npy", Path()), mmap_mode="r", allow_pickle=False)
            return np.asarray(stored[rows])
        return _read_remote_rows(folder, f"{folder.root}/{name}/{side}.npy", rows)
    except (OSError, ValueError, EOFError, IndexError) as error:
        repair = f"Remove the folder of this part, and run {folder.command} again."
        raise ArtifactError(f"{side}.npy of part {name} of {folder.url} cannot be read: {error}. {repair}") from error


def _read_remote_rows(folder: TaskFolder, path: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    header = io.BytesIO(folder.system.cat_file(path, start=0, end=HEADER_BYTES))
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    offset, row_bytes = header.tell(), shape[1] * dtype.itemsize
    runs = np.split(rows, np.flatnonzero(np.diff(rows) * row_bytes > GAP_BYTES) + 1)
    starts = [offset + int(run[0]) * row_bytes for run in runs]
    ends = [offset + (int(run[-1]) + 1) * row_bytes for run in runs]
    contents = folder.system.cat_ranges([path] * len(runs), starts, ends, on_error="raise")
    blocks = (np.frombuffer(content, dtype).reshape(-1, shape[1]) for content in contents)
    return np.concatenate([block[run - run[0]] for block, run in zip(blocks, runs, strict=True)])
