"""Encode one part: first its images, later its texts from the stored table of samples."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.dataset import BrokenSample, Part, Sample, notes
from clip_negatives.dataset.images import limited_batches
from clip_negatives.dataset.pairs import TornTar, readable
from clip_negatives.encoders import Encoder
from clip_negatives.encoders.encoder import BATCH
from clip_negatives.errors import DataError
from clip_negatives.features.ahead import read_ahead
from clip_negatives.features.store import KEYS, VECTORS, PartStore, Record
from clip_negatives.storage.clusters_parts import BYTES
from clip_negatives.storage.manifest import SAMPLES

CHUNK = 512  # samples encoded together, all from one part, so that features do not depend on the number of processes
MAX_PIXELS = 2**26  # of images prepared together (200 MB): of images of over a million pixels, less than `BATCH`
AHEAD = 4  # batches of prepared images, or chunks of texts, that wait for the encoder
KEY_BYTES = 16  # of the digest of tar and key: among 1e9 samples, two digests are equal with a probability of 1e-21

Prepared = tuple[list[Sample], Any]  # samples without images, and what the encoder prepared of the images

Advance = Callable[[int], None]  # gets the number of finished samples; may raise an error to stop


def encode_images(
    part: Part, digest: str, encoder: Encoder | None, store: PartStore, dtype: torch.dtype, advance: Advance
) -> None:
    """Read a part, and store its table of samples, key digests, image features, broken samples and notes.

    A thread reads and prepares images while earlier images are encoded. Without an encoder, store no image features.
    """
    tables: list[pa.Table] = []
    broken: list[BrokenSample] = []
    summary: notes.Summary = {}
    with store.adding(digest) as (folder, record):
        prepared = closing(read_ahead(_prepared(readable(part.samples(), broken), encoder), AHEAD))
        with prepared as batches, (folder / VECTORS).open("wb") as vectors, (folder / KEYS).open("wb") as keys:
            for chunk, inputs in _chunks(batches):
                if encoder is None:
                    record["count"] = record.get("count", 0) + sum(map(len, inputs))
                else:
                    raw = encoder.forward(inputs)
                    _write(raw, [f"the image of sample {sample.key}" for sample in chunk], encoder, dtype, vectors, record)
                keys.write(b"".join(map(_identity, chunk)))
                tables.append(_table(chunk))
                for sample in chunk:
                    notes.count(sample.notes, sample.name, summary)
                advance(len(chunk))
        if tables:
            pq.write_table(pa.concat_tables(tables), folder / SAMPLES, compression="zstd")
        record.setdefault("count", 0)
        record |= {**_losses(part, digest, broken), "missing": None, "notes": summary}


def _losses(part: Part, digest: str, broken: Sequence[BrokenSample]) -> Record:
    """Return the fields of a part that was read: broken samples and source files; DataError if the part has changed since."""
    sources = part.source_files()  # before the check that no file changed
    torn = next((sample for sample in broken if isinstance(sample, TornTar)), None)
    if torn is None and part.digest() != digest:
        raise DataError(f"{part.name} changed while it was read. Start again.")
    return {
        "broken": [(sample.key, sample.reason, sample.shard) for sample in broken if sample is not torn],
        "lost": [(sample.key, sample.reason) for sample in broken if sample.is_lost and sample is not torn],
        "torn": None if torn is None else (torn.key, torn.reason, torn.share),
        "sources": [(source.file, source.size, source.sha256) for source in sources],
    }


def _chunks(batches: Iterator[Prepared]) -> Iterator[tuple[list[Sample], Iterator[Any]]]:
    """Yield the samples of a chunk, and its prepared images. The samples are complete when all images of the chunk are used."""

    def images(batches: Iterable[Prepared], chunk: list[Sample]) -> Iterator[Any]:
        for samples, inputs in batches:
            chunk += samples
            yield inputs

    for first in batches:
        chunk: list[Sample] = []
        yield chunk, images(itertools.chain([first], itertools.islice(batches, max(1, CHUNK // BATCH) - 1)), chunk)


def _prepared(samples: Iterable[Sample], encoder: Encoder | None) -> Iterator[Prepared]:
    """Yield batches of samples without their images, and the prepared images."""
    for batch in limited_batches(samples, min(CHUNK, BATCH), _pixels, MAX_PIXELS):
        inputs = batch if encoder is None else encoder.prepare([sample.image for sample in batch])
        yield [_without_image(sample) for sample in batch], inputs


def _without_image(sample: Sample) -> Sample:
    """Return a sample with notes on its image instead of the image."""
    of_image = () if sample.image is None else notes.image_notes(sample.image)
    return dataclasses.replace(sample, image=None, notes=(*sample.notes, *of_image))


def _pixels(sample: Sample) -> int:
    return 0 if sample.image is None else sample.image.width * sample.image.height


def _identity(sample: Sample) -> bytes:
    """Return a digest of tar and key: keys of two tars may be equal."""
    return hashlib.blake2b(f"{sample.shard or ''}\0{sample.key}".encode(), digest_size=KEY_BYTES).digest()


def encode_texts(
    digest: str, encoder: Encoder, samples: PartStore, store: PartStore, dtype: torch.dtype, advance: Advance
) -> None:
    """Store the text features of a part of `samples`."""
    chunks = ((chunk, encoder.prepare(chunk)) for chunk in limited_batches(texts_of(samples, digest), CHUNK))
    with store.adding(digest) as (folder, record), (folder / VECTORS).open("wb") as vectors:
        with closing(read_ahead(chunks, AHEAD)) as prepared:
            for chunk, inputs in prepared:
                names = [f"the text {text[:60]!r}" for text in chunk]
                _write(encoder.forward([inputs]), names, encoder, dtype, vectors, record)
                advance(len(chunk))
        record.setdefault("count", 0)


def texts_of(samples: PartStore, digest: str, start: int = 0, step: int = 1) -> Iterator[str]:
    """Yield the texts start, start + step, ... of a part."""
    file = samples.folder / digest / SAMPLES
    if file.exists():
        yield from map(str, pq.read_table(file, columns=["text"])["text"][start::step])


def unit(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Return features with unit norm, contiguous; zero vectors stay zero."""
    return F.normalize(features.float(), dim=1).to(dtype).contiguous()


def write_rows(rows: Tensor, stream: Any) -> None:
    """Append contiguous rows to a file; unlike ``ndarray.tofile``, it reports a full disk."""
    stream.write(rows.numpy().data)


def _write(raw: Tensor, names: Sequence[str], encoder: Encoder, dtype: torch.dtype, stream: Any, record: Record) -> None:
    """Append features if they are finite; they stay raw if the encoder fits a projection later, on all parts."""
    if bad := (~raw.isfinite().all(1)).nonzero().flatten().tolist():
        fault = f"The encoder {encoder.name} gives NaN or infinity for {names[bad[0]]}"
        raise DataError(f"{fault}. Leave the sample out or use another encoder.")
    values = unit(raw, dtype) if encoder.fit is None else raw.float().contiguous()
    write_rows(values, stream)
    record["count"] = record.get("count", 0) + len(values)
    record["dim"], record["dtype"] = values.shape[1], str(values.dtype).removeprefix("torch.")


def _table(samples: list[Sample]) -> pa.Table:
    columns = {"key": "key", "text": "text", "image": "image_path", "group": "group", "shard": "shard"}
    known = {name: field for name, field in columns.items() if getattr(samples[0], field) is not None}
    values = {name: pa.array([str(getattr(sample, field)) for sample in samples], pa.string()) for name, field in known.items()}
    if samples[0].image_bytes is not None:
        values[BYTES] = pa.array([sample.image_bytes for sample in samples], pa.int64())
    return pa.table(values)
