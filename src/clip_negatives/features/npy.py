"""Features in npy files, mapped into memory or, at URLs, read block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_negatives.dataset.urls import check_local_file, is_plain, open_url, shard_source, shard_stamp, unreadable
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
        shapes = [_header(file)[0] for file in files]
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
            if not is_plain(file):
                yield from _downloaded(file)
                continue
            mapped = _opened(file)
            step = max(1, BLOCK_BYTES // (mapped.shape[1] * mapped.itemsize))
            for start in range(0, length, step):
                # Map the file again for each block, so that pages of earlier blocks do not count as memory of this process.
                rows = _opened(file)[start : start + step]
                yield file, start, torch.from_numpy(np.array(rows, rows.dtype.newbyteorder("="), order="C"))

    def mapped(self) -> Tensor | None:
        """Return the only file, memory-mapped; None for several files, a URL, or a file with another layout than a tensor."""
        if len(self.files) > 1 or not is_plain(self.files[0]):
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
    _check_type(file, rows.shape, rows.dtype)
    return rows


def _check_type(file: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != 2 or 0 in shape or dtype.kind != "f" or dtype.itemsize > np.dtype(np.float64).itemsize:
        fault = f"has values of type {dtype} and the shape {shape}"
        raise DataError(f"{file} {fault}, not float16, float32 or float64 of shape (samples, dimensions). Write it again.")


def _header(file: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the values of a file."""
    if is_plain(file):
        rows = _opened(file)
        return rows.shape, rows.dtype
    with open_url(file, "npy file") as stream:
        return _read_header(file, stream)


def _read_header(file: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the header of a file at a URL; the stream is then at the first row."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(stream)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(f"{file} cannot be read as an npy file: {reason}. Save floats with numpy.save.") from error
    except Exception as error:  # each file system of fsspec has its own errors
        raise unreadable("npy file", file, error) from error
    _check_type(file, shape, dtype)
    if by_columns:
        raise DataError(f"{file} stores its features by columns, so a URL cannot be read by rows. Save it in C order.")
    return shape, dtype


def _downloaded(file: str) -> Iterator[tuple[str, int, Tensor]]:
    """Yield the blocks of a file at a URL; see `NpyFeatures.blocks`."""
    with open_url(file, "npy file") as stream:
        (length, dim), dtype = _read_header(file, stream)
        step = max(1, BLOCK_BYTES // (dim * dtype.itemsize))
        for start in range(0, length, step):
            shape = min(step, length - start), dim
            try:
                content = _read_whole(stream, shape[0] * dim * dtype.itemsize)
            except Exception as error:  # each file system of fsspec has its own errors
                raise unreadable("npy file", file, error) from error
            rows = np.frombuffer(content, dtype).reshape(shape)
            yield file, start, torch.from_numpy(rows.astype(dtype.newbyteorder("=")))


def _read_whole(stream: IO[bytes], size: int) -> bytes:
    """Return the next bytes; EOFError if the file has fewer."""
    content = bytearray()
    while len(content) < size:
        block = stream.read(size - len(content))
        if not block:
            raise EOFError(f"it ends {size - len(content)} bytes early")
        content += block
    return bytes(content)
