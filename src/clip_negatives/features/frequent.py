"""Find images that many samples share although their texts differ, such as a placeholder "image not available"."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from clip_negatives.dataset.pairs import name_of
from clip_negatives.features.assembly import evenly
from clip_negatives.features.store import PartStore
from clip_negatives.storage.manifest import SAMPLES

MIN_SHARE, MIN_COUNT = 0.01, 10  # of samples with one image
LOOKED_AT = 20_000  # least number of evenly spaced samples that are searched for frequent images
SHOWN, DIGEST_BYTES = 3, 16


class Frequent(NamedTuple):
    """Samples with exactly equal image features: their number, the name of the first one, and digests of their texts."""

    n: int
    first: str
    texts: set[bytes]


def frequent_images(store: PartStore, counts: dict[str, int]) -> list[str]:
    """Return a sentence for each frequent image; an image is not frequent if its samples have few different texts."""
    n = sum(counts.values())
    least = max(MIN_COUNT, MIN_SHARE * n)
    places = evenly(counts, LOOKED_AT)
    looked_at = Counter(row for digest, start, step in places for row in _rows(store, digest, start, step))
    # Half of the expected number is enough: the count varies, because only one in `step` samples is searched.
    candidates = {row for row, count in looked_at.items() if 2 * places[0][2] * count >= least}
    images = [image for image in _counted(store, counts, candidates) if len(image.texts) >= least]
    return [
        f"{image.n} of {n} samples with {len(image.texts)} different texts have the same image features "
        f"(first: {image.first}). If the image is a placeholder, leave these samples out."
        for image in sorted(images, key=lambda image: -image.n)[:SHOWN]
    ]


def _counted(store: PartStore, counts: dict[str, int], candidates: set[bytes]) -> list[Frequent]:
    """Return the exact number of samples and the texts of each candidate."""
    images: dict[bytes, Frequent] = {}
    for digest in counts if candidates else ():
        rows = {place: row for place, row in enumerate(_rows(store, digest, 0, 1)) if row in candidates}
        if not rows:
            continue
        samples = pq.read_table(store.folder / digest / SAMPLES).take(list(rows)).to_pylist()
        for row, sample in zip(rows.values(), samples, strict=True):
            image = images.get(row, Frequent(0, name_of(sample["key"], sample.get("image")), set()))
            image.texts.add(_digest(sample["text"].encode()))
            images[row] = image._replace(n=image.n + 1)
    return list(images.values())


def _rows(store: PartStore, digest: str, start: int, step: int) -> Iterator[bytes]:
    """Yield digests of the features start, start + step, ... of a part."""
    rows = np.ascontiguousarray(store.vectors(digest, start, None, step).numpy())
    yield from map(_digest, rows)


def _digest(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
