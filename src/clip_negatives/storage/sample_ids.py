"""Ids of the texts and groups of samples: equal values have equal ids, and a missing value equals no other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

MIN_GROUP_COVERAGE = 0.5  # share of the samples with a group, from which groups are used
MISSING_TEXT = "nan"  # open_clip trains on this text if a row of a table has no text


def text_ids(samples: pa.Table) -> Tensor:
    """Return an id for each text of a table of samples, int64, shape (N,): equal texts have equal ids.

    Each missing text has its own id. A text is missing if it is empty or, in samples that name no tars, if it is "nan".
    """
    texts = samples["text"]
    if "shard" not in samples.column_names:
        texts = pc.if_else(pc.equal(texts, MISSING_TEXT), "", texts)
    return integer_ids(texts)


def group_ids(samples: pa.Table) -> Tensor | None:
    """Return an id for each group of a table of samples, int64, shape (N,), or None without groups; see `integer_ids`."""
    return integer_ids(samples["group"]) if "group" in samples.column_names else None


def group_coverage(samples: pa.Table) -> float:
    """Return the share of the samples of a table that have a group, 0 .. 1; 0 without groups."""
    if "group" not in samples.column_names:
        return 0.0
    has_group = pc.not_equal(pc.fill_null(samples["group"], ""), "")
    return float(pc.mean(has_group.cast(pa.float64())).as_py() or 0.0)


def integer_ids(values: pa.ChunkedArray | pa.Array | Sequence[str]) -> Tensor:
    """Return an id for each value, int64, shape (N,): equal values have equal ids, but each empty value has its own id."""
    column = pa.array(values, pa.string()) if not isinstance(values, pa.Array | pa.ChunkedArray) else values
    chunks = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    # Chunk by chunk, because one array of strings is limited to 2 GiB.
    encoded = pc.fill_null(chunks, "").dictionary_encode().unify_dictionaries()
    indices = [chunk.indices.to_numpy(zero_copy_only=False).astype(np.int64) for chunk in encoded.chunks]
    ids = np.concatenate([np.empty(0, np.int64), *indices])
    empty_id = encoded.chunk(0).dictionary.index("").as_py() if encoded.num_chunks else -1
    empty_rows = (ids == empty_id).nonzero()[0]
    ids[empty_rows] = len(ids) + np.arange(len(empty_rows))
    return torch.from_numpy(ids)
