"""Encode one part, its images as it is read and its texts from what was written of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.dataset import Broken, Part, Sample
from clip_negatives.dataset.source import in_turn
from clip_negatives.encoders import Encoder
from clip_negatives.errors import DataError
from clip_negatives.features.store import KEYS, SAMPLES, VECTORS, Record, Store

CHUNK = 512
"""Samples that are encoded together; they are of one part, so that features do not depend on who encodes what else."""

PIXELS = 2**29
"""Pixels that they have together at most, 1.6 GB: of images over a million pixels, fewer are encoded together."""

KEY_BYTES = 16
"""Size of the digest of a key: two of 1e9 keys have the same with a probability of 1e-21."""

Advance = Callable[[int], None]
"""Takes the number of samples that were done; may raise to stop."""


def encode_images(part: Part, digest: str, encoder: Encoder, store: Store, dtype: torch.dtype, advance: Advance) -> None:
    """Read a part and add to `store` its table of samples, digests of its keys, the features of its images, and what is broken.

    Raises:
        DataError: it cannot be read, or changed meanwhile, or the encoder gives an image no finite features.
    """
    tables: list[pa.Table] = []
    broken: list[tuple[str, str]] = []
    with store.adding(digest) as (folder, record):
        with (folder / VECTORS).open("wb") as vectors, (folder / KEYS).open("wb") as keys:
            for some in in_turn(_sound(part.samples(), broken), CHUNK, _pixels, PIXELS):
                encoded = encoder.encode([sample.image for sample in some])
                _check_finite(encoded, encoder, [f"the image of sample {sample.key}" for sample in some])
                _write(encoded, encoder, dtype, vectors, record)
                keys.write(b"".join(key_digest(sample.key) for sample in some))
                tables.append(_table(some))
                advance(len(some))
        if tables:
            pq.write_table(pa.concat_tables(tables), folder / SAMPLES, compression="zstd")
        if part.digest() != digest:
            raise DataError(f"Expected data that stay as they are, got {part.name}, which changed meanwhile. Start again.")
        record.setdefault("count", 0)
        record["broken"] = broken


def encode_texts(digest: str, encoder: Encoder, samples: Store, store: Store, dtype: torch.dtype, advance: Advance) -> None:
    """Add to `store` the features of the texts of a part whose samples are written.

    Raises:
        DataError: the encoder gives a text no finite features.
    """
    with store.adding(digest) as (folder, record), (folder / VECTORS).open("wb") as vectors:
        for some in in_turn(texts_of(samples, digest), CHUNK):
            encoded = encoder.encode(some)
            _check_finite(encoded, encoder, [f"the text {text[:60]!r}" for text in some])
            _write(encoded, encoder, dtype, vectors, record)
            advance(len(some))
        record.setdefault("count", 0)


def texts_of(samples: Store, digest: str, start: int = 0, step: int = 1) -> Iterator[str]:
    """Yield text start, start + step, ... of a part."""
    file = samples.folder / digest / SAMPLES
    if file.exists():
        column = pq.read_table(file, columns=["text"])["text"]
        for place in range(start, len(column), step):
            yield str(column[place])


def key_digest(key: str) -> bytes:
    """Return `KEY_BYTES` that are the same for equal keys."""
    return hashlib.blake2b(key.encode(), digest_size=KEY_BYTES).digest()


def unit(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Return features at unit norm, or zero where they are zero, contiguous."""
    return F.normalize(features.float(), dim=1).to(dtype).contiguous()


def write_rows(rows: Tensor, stream: Any) -> None:
    """Append contiguous rows to a file; numpy's own way to do it does not tell that the last bytes found no room."""
    stream.write(rows.numpy().data)


def _check_finite(raw: Tensor, encoder: Encoder, names: Sequence[str]) -> None:
    """Refuse features that would make a cluster, and all that is told of it, not a number."""
    bad = (~raw.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"Expected finite features of every sample, got NaN or infinity from {encoder.name} for {names[bad[0]]}. "
            "Leave it out or use another encoder."
        )


def _write(raw: Tensor, encoder: Encoder, dtype: torch.dtype, stream: Any, record: Record) -> None:
    """Append features: as they are kept, or as they come where a projection is still to be fitted on those of all parts."""
    values = unit(raw, dtype) if encoder.fit is None else raw.float().contiguous()
    write_rows(values, stream)
    record["count"] = record.get("count", 0) + len(values)
    record["dim"], record["dtype"] = values.shape[1], str(values.dtype).removeprefix("torch.")


def _sound(samples: Iterable[Sample | Broken], broken: list[tuple[str, str]]) -> Iterator[Sample]:
    """Yield the samples and put aside those that are broken."""
    for sample in samples:
        if isinstance(sample, Broken):
            broken.append((sample.key, sample.reason))
        else:
            yield sample


def _pixels(sample: Sample) -> int:
    return sample.image.width * sample.image.height


def _table(some: list[Sample]) -> pa.Table:
    columns = {"key": [sample.key for sample in some], "text": [sample.text for sample in some]}
    if some[0].image_path is not None:
        columns["image"] = [str(sample.image_path) for sample in some]
    if some[0].group is not None:
        columns["group"] = [str(sample.group) for sample in some]
    if some[0].shard is not None:
        columns["shard"] = [str(sample.shard) for sample in some]
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
