"""Labels folder from clusters that another program made: a table of assignments, and the centroids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.dataset.assignment_columns import AssignmentColumns
from clip_negatives.dataset.assignment_files import centroid_files
from clip_negatives.dataset.assignments import Assignments
from clip_negatives.errors import DataError
from clip_negatives.features.npy import NpyFeatures
from clip_negatives.interfaces import Clustering
from clip_negatives.pipelines.assigned_parts import assigned_tars
from clip_negatives.pipelines.given_shards import shard_sources
from clip_negatives.printing import log
from clip_negatives.progress import stage
from clip_negatives.storage.atomic import writing
from clip_negatives.storage.consistency import MODALITIES
from clip_negatives.storage.digests import digest_of, table_digest
from clip_negatives.storage.labels_folder import LabelsFolder, write_shard_labels
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.manifest import LABELS_FOLDER
from clip_negatives.storage.ownership import claim_work, clear_work, remove_work
from clip_negatives.storage.shard_buckets import ShardBuckets
from clip_negatives.storage.shards import distinct_depth, last_parts


def write_given_labels(
    table: str,
    centroids: str,
    output: str | Path,
    columns: AssignmentColumns | None = None,
    *,
    data: str | None = None,
) -> LabelsFolder:
    """Write a labels folder from clusters that another program made, atomically.

    The rows may have any order, and the same rows in another order give the same labels. They are grouped by tar in temporary
    files beside the output; memory holds a part of them at a time. Clusters without a sample are left out.

    Args:
        table: parquet or csv file, or a folder of them, with key, tar, image cluster and text cluster of each sample; at a URL,
            parquet only.
        centroids: ``IMAGES.npy,TEXTS.npy``, paths or URLs, row k the centroid of cluster k. They may have any length above 0:
            similarities are cosines.
        output: the labels folder.
        columns: columns of the table; None: common names.
        data: the tars to train on. If given, they are compared with those in the table, and their sizes are stored. For a
            folder of `assign_parts`, the sizes that the tars had in `encode_parts` are stored without it.

    Raises:
        DataError: the table or the centroids cannot be used, or the tars are not those in the table.
        ArtifactError: `output` cannot be written, or `table` is a folder of
            `clip_negatives.pipelines.assigned_parts.assign_parts` that is not complete, or was made with other centroids.
    """
    output = LABELS_FOLDER.check(output)
    encoded = assigned_tars(table, dict(zip(MODALITIES, centroid_files(centroids), strict=True)))
    assignments, sides = Assignments.open(table, columns or AssignmentColumns()), centroids_of(centroids)
    work = output.with_name(f".{output.name}.rows")
    with ExitStack() as stack:
        stack.enter_context(sole_user(output))
        claim_work(work)
        stack.callback(remove_work, work)
        clear_work(work)
        buckets, counts = _grouped(assignments, sides, work)
        sources = shard_sources(list(buckets.numbers), data, encoded)
        kept = {name: torch.from_numpy(count > 0) for name, count in counts.items()}
        clusterings = [_clustering(name, sides[name][1], counts[name], kept[name]) for name in MODALITIES]
        origin: dict[str, Any] = {"clusters_created": written} if (written := assignments.written) else {}
        rows = _tables(buckets, {name: mask for name, mask in kept.items() if not bool(mask.all())}, origin)
        return write_shard_labels((clusterings[0], clusterings[1]), rows, output, sources, origin)


def centroids_of(spec: str) -> dict[str, tuple[str, Tensor]]:
    """Return file and centroids, float32, shape (K, D), of the images and the texts; DataError if they cannot be used."""
    sides = {}
    for name, file in zip(MODALITIES, centroid_files(spec), strict=True):
        rows = torch.cat([block.float() for _, _, block in NpyFeatures.open([file]).blocks()])
        if len(bad := (~rows.isfinite().all(dim=1)).nonzero()):
            raise DataError(f"Row {int(bad[0])} of {file} has NaN or infinity. Compute the centroids again.")
        sides[name] = file, rows
    return sides


def _grouped(
    assignments: Assignments, sides: dict[str, tuple[str, Tensor]], work: Path
) -> tuple[ShardBuckets, dict[str, np.ndarray[Any, np.dtype[np.int64]]]]:
    """Write the rows into buckets, and return these and the number of samples of each cluster."""
    counts = {name: np.zeros(len(sides[name][1]), np.int64) for name in MODALITIES}
    buckets = ShardBuckets(work, assignments.likely_rows)
    with stage("Reading the table", unit="rows") as running, writing(work), buckets:
        for block in assignments.blocks():
            for name, (file, centroids) in sides.items():
                _check_labels(block, assignments.columns[f"{name}_label"], name, file, len(centroids))
                counts[name] += np.bincount(block[f"{name}_label"].to_numpy(), minlength=len(centroids))
            buckets.add(_with_int32(block))
            running.advance(block.num_rows)
    if not buckets.numbers:
        raise DataError(f"{assignments.location} has no rows. Add samples.")
    return buckets, counts


def _check_labels(block: pa.Table, column: str, name: str, file: str, n_clusters: int) -> None:
    """Raise DataError if a label has no centroid."""
    labels = block[f"{name}_label"].to_numpy()
    outside = np.flatnonzero((labels < 0) | (labels >= n_clusters))
    if len(outside):
        row = int(outside[0])
        key, shard, label = block["key"][row].as_py(), block["shard"][row].as_py(), int(labels[row])
        fault = f"The sample {key!r} of {shard} has the {name} cluster {label} (column {column})"
        if label < 0:
            raise DataError(f"{fault}. Clusters are numbered from 0. Leave out the rows of samples without a cluster.")
        repair = f"Number the clusters from 0, and name the centroids of these clusters with {argument('centroids')}."
        raise DataError(f"{fault}, but {file} has {n_clusters} rows. {repair}")


def _with_int32(block: pa.Table) -> pa.Table:
    for name in MODALITIES:
        place = block.column_names.index(f"{name}_label")
        block = block.set_column(place, f"{name}_label", block[f"{name}_label"].cast(pa.int32()))
    return block


def _clustering(name: str, centroids: Tensor, counts: np.ndarray[Any, np.dtype[np.int64]], kept: Tensor) -> Clustering:
    """Return the clusters that have samples; DataError if the centroid of one is zero."""
    if n_empty := int((~kept).sum()):
        log(f"{n_empty} of {len(kept)} {name} clusters have no sample. They are left out, and the others are renumbered.")
    if len(zero := ((centroids == 0).all(dim=1) & kept).nonzero()):
        fault = f"The centroid of {name} cluster {int(zero[0])} is zero, so it has no similarity to other clusters"
        raise DataError(f"{fault}. Compute the centroids again.")
    return Clustering(torch.empty(0, dtype=torch.int64), centroids[kept], torch.from_numpy(counts)[kept])


def _tables(buckets: ShardBuckets, renumbered: dict[str, Tensor], origin: dict[str, Any]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the labels of each shard. At the end, add the digest of all labels to `origin`."""
    digests, depth = {}, distinct_depth(list(buckets.numbers))
    numbers = {name: (mask.cumsum(0) - 1).int().numpy() for name, mask in renumbered.items()}
    for shard, rows in buckets.shards():
        _check_distinct_keys(rows["key"], shard)
        for name, number in numbers.items():
            column = pa.array(number[rows[f"{name}_label"].to_numpy()])
            rows = rows.set_column(rows.column_names.index(f"{name}_label"), f"{name}_label", column)
        digests[last_parts(shard, depth)] = table_digest(rows)
        yield shard, rows.rename_columns(["__key__", *rows.column_names[1:]])
    origin["assignments"] = digest_of(digests)


def _check_distinct_keys(keys: Sequence[Any], shard: str) -> None:
    """Raise DataError if one of the sorted keys repeats."""
    repeated = pc.equal(keys[1:], keys[:-1])
    if (row := pc.index(repeated, True).as_py()) >= 0:
        raise DataError(f"The table has several rows for the key {keys[row].as_py()!r} of {shard}. Keep one of them.")
