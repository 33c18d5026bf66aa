"""Features in npy files, mapped into memory or read block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_negatives.dataset.urls import check_local_file, shard_source, shard_stamp
from clip_negatives.errors import DataError
from clip_negatives.storage.source_files import SourceFile

BLOCK_BYTES = 2**24  # of a file that are read at a time


@dataclass(frozen=True, slots=True)
class NpyFeatures:
    """Features in one npy file or several, one after the other; see `clip_negatives.features.given.GivenFeatures`."""

    files: tuple[str, ...]
    lengths: tuple[int, ...]  # rows of each file

    @classmethod
    def open(cls, files: Sequence[str]) -> NpyFeatures:
        """Read the headers of files; DataError if a file is no npy file of floats, or if the numbers of dimensions differ."""
        shapes = [_opened(file).shape for file in files]
        for file, shape in zip(files, shapes, strict=True):
            if shape[1] != shapes[0][1]:
                fault = f"{file} has features of {shape[1]} dimensions, but {files[0]} of {shapes[0][1]}"
                raise DataError(f"{fault}. Name files of one model.")
        return cls(tuple(files), tuple(shape[0] for shape in shapes))

    @property
    def name(self) -> str:
        """Return the file, or the first file and the number of files."""
        return self.files[0] if len(self.files) == 1 else f"{self.files[0]} ... ({len(self.files)} files)"

    @property
    def n_rows(self) -> int:
        """Return the number of rows."""
        return sum(self.lengths)

    def stamp(self) -> bytes:
        """Return names, sizes and modification times of the files."""
        return b"\0".join(part for file in self.files for part in (file.encode(), shard_stamp(file)))

    def sources(self) -> list[SourceFile]:
        """Return the size of each file, and a digest of both ends."""
        return [shard_source(file) for file in self.files]

    def blocks(self) -> Iterator[tuple[str, int, Tensor]]:
        """Yield blocks: the file, the number of the first row in it, and the rows."""
        for file, length in zip(self.files, self.lengths, strict=True):
            mapped = _opened(file)
            step = max(1, BLOCK_BYTES // (mapped.shape[1] * mapped.itemsize))
            for start in range(0, length, step):
                # Map the file again for each block, so that pages of earlier blocks do not count as memory of this process.
                rows = _opened(file)[start : start + step]
                yield file, start, torch.from_numpy(np.array(rows, rows.dtype.newbyteorder("="), order="C"))

    def mapped(self) -> Tensor | None:
        """Return the only file, memory-mapped; None for several files, or for a file with another layout than a tensor."""
        if len(self.files) > 1:
            return None
        rows = _opened(self.files[0])
        fits = rows.flags.c_contiguous and rows.dtype.isnative and rows.dtype.itemsize < np.dtype(np.float64).itemsize
        return torch.from_numpy(rows) if fits else None


def _opened(file: str) -> NDArray[Any]:
    """Return a memory-mapped file whose changes in memory never reach the disk."""
    check_local_file("npy file", file)
    try:
        rows = np.lib.format.open_memmap(Path(file), mode="c")
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(f"{file} cannot be mapped as an npy file: {reason}. Save floats with numpy.save.") from error
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind != "f" or rows.dtype.itemsize > np.dtype(np.float64).itemsize:
        fault = f"has values of type {rows.dtype} and the shape {rows.shape}"
        raise DataError(f"{file} {fault}, not float16, float32 or float64 of shape (samples, dimensions). Write it again.")
    return rows
