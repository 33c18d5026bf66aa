"""Merge the parts into one table of samples and one file of features, in bounded memory."""

from __future__ import annotations

import itertools
import json
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from clip_negatives.encoders import Encoder
from clip_negatives.errors import DataError
from clip_negatives.features.encoding import CHUNK, KEY_BYTES, unit, write_rows
from clip_negatives.features.losses import Losses
from clip_negatives.features.store import KEYS, PartStore
from clip_negatives.storage.atomic import writing
from clip_negatives.storage.clusters_folder import BROKEN
from clip_negatives.storage.clusters_parts import FEATURES
from clip_negatives.storage.manifest import SAMPLES
from clip_negatives.storage.source_files import DIGESTED_FILES, SOURCES, SourceFile, evenly_spread, write_sources

FITTED_ON = 20_000  # least number of evenly spaced samples to fit a projection on; at most twice as many are used
ROWS = 65_536  # least rows of a row group of the table of samples; the last group may have fewer
KEYS_AT_ONCE = 2**21  # digests of keys that are sorted in memory at a time
BROKEN_COLUMNS = pa.schema([*((name, pa.string()) for name in ("key", "reason", "shard")), ("samples", pa.int64())])
DTYPES = {torch.float32: "F32", torch.float16: "F16"}  # names in safetensors


def check_keys(samples: PartStore, digests: Sequence[str], n: int, cause: str) -> None:
    """Raise DataError if tar and key of a sample repeat; `cause` says why and what to do.

    Equal digests go to one temporary file, of about `KEYS_AT_ONCE` digests.
    """
    home, buckets, repeated = samples.folder.parent, -(-n // KEYS_AT_ONCE), 0
    with writing(home), tempfile.TemporaryDirectory(dir=home, prefix="keys.") as scratch, ExitStack() as stack:
        files = [stack.enter_context((Path(scratch) / str(bucket)).open("w+b")) for bucket in range(buckets)]
        for digest in digests:
            keys = np.fromfile(samples.folder / digest / KEYS, dtype=f"S{KEY_BYTES}")
            first = keys.view(">u4")[:: KEY_BYTES // 4].astype(np.uint64)
            bucket_of = first * np.uint64(buckets) >> np.uint64(32)
            for bucket in np.unique(bucket_of):
                files[int(bucket)].write(keys[bucket_of == bucket].tobytes())
        for file in files:
            file.seek(0)
            keys = np.fromfile(file, dtype=f"S{KEY_BYTES}")
            repeated += len(keys) - len(np.unique(keys))
    if repeated:
        raise DataError(f"{repeated} samples repeat, because {cause}")


def write_samples(samples: PartStore, digests: Sequence[str], losses: Losses, folder: Path) -> None:
    """Write the tables of all parts as one table, and any broken samples and torn tars as a second table."""
    kept = [digest for digest in digests if (samples.folder / digest / SAMPLES).exists()]
    schema = pq.read_schema(samples.folder / kept[0] / SAMPLES)
    with pq.ParquetWriter(folder / SAMPLES, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for digest in kept:
            waiting.append(pq.read_table(samples.folder / digest / SAMPLES))
            if sum(map(len, waiting)) >= ROWS or digest == kept[-1]:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
    broken = [(*entry, 1) for digest in digests for entry in (samples.record(digest) or {}).get("broken", ())]
    broken += [(part.name, str(part), part.name, part.n_lost) for part in losses.torn]
    if broken:
        columns = [
            pa.array(values, field.type) for values, field in zip(zip(*broken, strict=True), BROKEN_COLUMNS, strict=True)
        ]
        pq.write_table(pa.table(columns, schema=BROKEN_COLUMNS), folder / BROKEN, compression="zstd")


def write_source_files(samples: PartStore, digests: Sequence[str], folder: Path) -> None:
    """Write the source files of all parts: every tar, or at most `DIGESTED_FILES` evenly spread images."""
    sources = [SourceFile(*entry) for digest in digests for entry in (samples.record(digest) or {}).get("sources", ())]
    if "shard" not in pq.read_schema(folder / SAMPLES).names:
        sources = [sources[place] for place in evenly_spread(len(sources), DIGESTED_FILES)]
    write_sources(sources, folder / SOURCES)


def write_features(streams: Mapping[str, Iterator[Tensor]], n: int, folder: Path) -> None:
    """Write features as one file, byte for byte as ``safetensors.torch.save_file`` would.

    `streams` has the N rows of images and texts, each block by block.
    """
    # The last bits of sums depend on the number of threads, which torchrun changes.
    with threadpool_limits(1, "blas"), (folder / FEATURES).open("wb") as stream:
        first = {name: next(blocks) for name, blocks in streams.items()}  # gives the number of dimensions
        first = dict(sorted(first.items(), key=lambda item: -item[1].dtype.itemsize))  # aligns both tensors
        header, end = dict[str, Any](), 0
        for name, block in first.items():
            start, end = end, end + n * block.shape[1] * block.dtype.itemsize
            header[name] = {"dtype": DTYPES[block.dtype], "shape": [n, block.shape[1]], "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, block in first.items():
            for rows in itertools.chain([block], streams[name]):
                write_rows(rows, stream)


def encoded_blocks(encoder: Encoder, store: PartStore, counts: dict[str, int], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the features of all parts, `CHUNK` rows at a time."""
    project = None  # the stored features are final
    if encoder.fit is not None:
        rows = (store.vectors(digest, start, None, step) for digest, start, step in evenly(counts, FITTED_ON) if counts[digest])
        project = encoder.fit(torch.cat([block for block in rows if len(block)]))
    for digest, count in counts.items():
        for start in range(0, count, CHUNK):
            raw = store.vectors(digest, start, start + CHUNK)
            yield raw if project is None else unit(project(raw), dtype)


def evenly(counts: dict[str, int], least: int) -> list[tuple[str, int, int]]:
    """Return digest, first row and step of each part, to sample at least `least` rows evenly spaced over all parts."""
    step = max(1, sum(counts.values()) // least)
    before = itertools.accumulate(counts.values(), initial=0)
    return [(digest, -rows % step, step) for digest, rows in zip(counts, before, strict=False)]
