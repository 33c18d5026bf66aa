"""Put the parts together: one table, one file of features, in bounded memory."""

from __future__ import annotations

import itertools
import json
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from clip_negatives.artifacts import BROKEN, FEATURES, SAMPLES
from clip_negatives.encoders import Encoder
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.features.encoding import CHUNK, KEY_BYTES, unit, write_rows
from clip_negatives.features.store import KEYS, Store

FITTED_ON = 20_000
"""Samples, evenly spaced over the data, that an encoder's projection is fitted on: from so many on, up to twice as many."""

ROWS = 65_536
"""Rows of a row group of the table of samples, at least; the last one may have fewer."""

KEYS_AT_ONCE = 2**21
"""Digests of keys that are sorted in memory together."""

DTYPES = {torch.float32: "F32", torch.float16: "F16"}
"""What safetensors calls them."""


def check_keys(samples: Store, digests: Sequence[str], n: int) -> None:
    """Make sure that every key is there once, `KEYS_AT_ONCE` in memory at a time.

    Raises:
        DataError: a key repeats.
        ArtifactError: what is sorted on the way cannot be written.
    """
    try:
        repeated = _repeated(samples, digests, -(-n // KEYS_AT_ONCE))
    except OSError as error:
        raise ArtifactError(
            f"Expected to compare the keys in {samples.folder.parent}, got: {error.strerror or error}. Free space or name "
            "another."
        ) from error
    if repeated:
        raise DataError(f"Expected every key once in the data, got {repeated} again. Rename the samples.")


def _repeated(samples: Store, digests: Sequence[str], buckets: int) -> int:
    """Return how many keys were there before; equal ones are put into the same one of some files."""
    repeated = 0
    with tempfile.TemporaryDirectory(dir=samples.folder.parent, prefix="keys.") as scratch, ExitStack() as stack:
        files = [stack.enter_context((Path(scratch) / str(bucket)).open("w+b")) for bucket in range(buckets)]
        for digest in digests:
            keys = np.fromfile(samples.folder / digest / KEYS, dtype=f"S{KEY_BYTES}")
            first = keys.view(np.uint8).reshape(-1, KEY_BYTES)[:, :4].astype(np.uint64)
            place = (first @ np.array([2**24, 2**16, 2**8, 1], np.uint64)) * np.uint64(buckets) >> np.uint64(32)
            for bucket in np.unique(place):
                files[int(bucket)].write(keys[place == bucket].tobytes())
        for file in files:
            file.seek(0)
            keys = np.fromfile(file, dtype=f"S{KEY_BYTES}")
            repeated += len(keys) - len(np.unique(keys))
    return repeated


def write_samples(samples: Store, digests: Sequence[str], folder: Path) -> None:
    """Write the tables of the parts as one, and what is broken as another, where something is."""
    kept = [digest for digest in digests if (samples.folder / digest / SAMPLES).exists()]
    schema = pq.read_schema(samples.folder / kept[0] / SAMPLES)
    with pq.ParquetWriter(folder / SAMPLES, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for digest in kept:
            waiting.append(pq.read_table(samples.folder / digest / SAMPLES))
            if sum(map(len, waiting)) >= ROWS or digest == kept[-1]:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
    listed = [pair for digest in digests for pair in (samples.record(digest) or {}).get("broken", ())]
    if listed:
        keys, reasons = zip(*listed, strict=True)
        pq.write_table(pa.table({"key": keys, "reason": reasons}), folder / BROKEN, compression="zstd")


def write_features(
    images: tuple[Encoder, Store], texts: tuple[Encoder, Store], counts: dict[str, int], dtype: torch.dtype, folder: Path
) -> None:
    """Write the features of the parts as one file, as ``safetensors.torch.save_file`` writes the tensors image and text.

    Args:
        images: encoder of the images, and what it made of each part.
        texts: the same of the texts.
        counts: samples of each part, in order.
        dtype: float32 or float16.
        folder: where.
    """
    streams = {"image": _blocks(*images, counts, dtype), "text": _blocks(*texts, counts, dtype)}
    # One thread for linear algebra: the last bits of its sums depend on their number, which torchrun changes.
    with threadpool_limits(1, "blas"), (folder / FEATURES).open("wb") as stream:
        first = {name: next(blocks) for name, blocks in streams.items()}  # says how wide they are
        n, header, end = sum(counts.values()), dict[str, Any](), 0
        for name, block in first.items():
            start, end = end, end + n * block.shape[1] * dtype.itemsize
            header[name] = {"dtype": DTYPES[dtype], "shape": [n, block.shape[1]], "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, blocks in streams.items():
            for block in itertools.chain([first[name]], blocks):
                write_rows(block, stream)


def _blocks(encoder: Encoder, store: Store, counts: dict[str, int], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the features of all parts, `CHUNK` rows at a time."""
    project = _projection(encoder, store, counts)
    for digest, count in counts.items():
        for start in range(0, count, CHUNK):
            raw = store.vectors(digest, start, start + CHUNK)
            yield raw if project is None else unit(project(raw), dtype)


def _projection(encoder: Encoder, store: Store, counts: dict[str, int]) -> Callable[[Tensor], Tensor] | None:
    """Return what maps raw features to features, or None where they are features already."""
    if encoder.fit is None:
        return None
    some = [store.vectors(digest, start, None, step) for digest, start, step in evenly(counts, FITTED_ON) if counts[digest]]
    return encoder.fit(torch.cat([rows for rows in some if len(rows)]))


def evenly(counts: dict[str, int], about: int) -> Iterable[tuple[str, int, int]]:
    """Return for each part the first row and the step that give samples evenly spaced over all parts, at least `about`."""
    step, before = max(1, sum(counts.values()) // about), 0
    for digest, count in counts.items():
        yield digest, -before % step, step
        before += count
