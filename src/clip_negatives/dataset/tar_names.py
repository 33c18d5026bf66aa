"""Names of tars, made from the keys of their samples."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from clip_negatives.dataset.columns import argument_of
from clip_negatives.errors import DataError

FIELD = re.compile(r"\{key(?::\.(\d+))?\}")  # as in Python's format strings


def tar_names(pattern: str, keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the path of the tar of each key.

    In `pattern`, ``{key}`` is the key and ``{key:.5}`` its first five characters, as in Python's format strings. The package
    img2dataset names tars so: the sample 000010123 is in 00001.tar.

    >>> tar_names("shards/{key:.5}.tar", pa.chunked_array([["000010123"]])).to_pylist()
    ['shards/00001.tar']

    Raises:
        DataError: the pattern has no ``{key}``, or other braces.
    """
    texts = FIELD.split(pattern)  # text, length, text, length, ..., text
    if len(texts) == 1 or any(mark in text for text in texts[::2] for mark in "{}"):
        fault = f"{argument_of('shard_pattern')} must contain {{key}} or {{key:.5}} (its first five characters)"
        raise DataError(f"{fault}, and no other braces, got {pattern!r}.")
    parts: list[pa.ChunkedArray | pa.Scalar] = [pa.scalar(texts[0])]
    for length, text in zip(texts[1::2], texts[2::2], strict=True):
        parts += [pc.utf8_slice_codeunits(keys, 0, int(length)) if length else keys, pa.scalar(text)]
    return pc.binary_join_element_wise(*parts, pa.scalar(""))
