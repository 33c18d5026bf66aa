"""Find images that many samples share although their texts differ, such as a placeholder "image not available"."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from clip_negatives.features.assembly import evenly
from clip_negatives.features.store import PartStore
from clip_negatives.storage.manifest import SAMPLES

LEAST_SHARE, LEAST_COUNT = 0.01, 10  # of samples with one image
LOOKED_AT = 20_000  # least number of evenly spaced samples among which frequent images are looked for
SHOWN, DIGEST_BYTES = 3, 16


class Frequent(NamedTuple):
    """Samples with exactly equal image features: their number, the first one, and their different texts."""

    n: int
    first: str
    texts: set[str]


def frequent_images(store: PartStore, counts: dict[str, int]) -> list[str]:
    """Return a sentence for each frequent image; images of which all samples have few different texts are usual."""
    n = sum(counts.values())
    least = max(LEAST_COUNT, LEAST_SHARE * n)
    places = evenly(counts, LOOKED_AT)
    looked_at = Counter(row for digest, start, step in places for row in _rows(store, digest, start, step))
    step = places[0][2] if places else 1
    candidates = {row for row, count in looked_at.items() if 2 * step * count >= least}
    images = [image for image in _counted(store, counts, candidates) if image.n > least - 1 and len(image.texts) >= least]
    return [
        f"{image.n} of {n} samples with {len(image.texts)} different texts have the same image features "
        f"(first: {image.first}). If the image is a placeholder, leave these samples out."
        for image in sorted(images, key=lambda image: -image.n)[:SHOWN]
    ]


def _counted(store: PartStore, counts: dict[str, int], candidates: set[bytes]) -> list[Frequent]:
    """Return the exact numbers for the candidates."""
    found: dict[bytes, Frequent] = {}
    for digest in counts if candidates else ():
        rows = [(place, row) for place, row in enumerate(_rows(store, digest, 0, 1)) if row in candidates]
        if not rows:
            continue
        table = pq.read_table(store.folder / digest / SAMPLES, columns=["key", "text"])
        for place, row in rows:
            key, text = (str(table[name][place].as_py()) for name in ("key", "text"))
            image = found.get(row, Frequent(0, key, set()))
            image.texts.add(text)
            found[row] = image._replace(n=image.n + 1)
    return list(found.values())


def _rows(store: PartStore, digest: str, start: int, step: int) -> Iterator[bytes]:
    """Yield digests of the features start, start + step, ... of a part."""
    rows = np.ascontiguousarray(store.vectors(digest, start, None, step).numpy())
    yield from (hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest() for row in rows)
