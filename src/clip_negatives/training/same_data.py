"""Checks that clusters belong to the data of a training run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from torch.utils.data import ConcatDataset, Subset

from clip_negatives.dataset.columns import IMAGE, TEXT
from clip_negatives.errors import ArtifactError, InputError
from clip_negatives.printing import log, warn
from clip_negatives.storage.clusters_folder import ClustersFolder

T = TypeVar("T")
R = TypeVar("R")

IDENTITIES = ("key", "text", "image")  # columns of a sample table that identify samples
# Names of attributes or columns of a data set that identify its samples: captions, or else keys, or else image paths.
NAMES = (
    {"caption", "captions", "text", "texts", TEXT, "titles"},
    {"key", "keys", "__key__"},
    {"image_path", "image_paths", IMAGE, "file_name", "images"},
)
CHECKED_FILES = 50_000  # files whose size and modification time are checked: a network file system answers slowly
CHUNK = 256  # files that a thread looks at in one go
AT_ONCE = 2e-5  # seconds in which a local disk answers for a file
TOLERANCE = 1.0  # seconds: a manifest gives whole seconds


def check_count(clustered: int, trained: int, folder: Path | str) -> None:
    """Check that a clusters folder has as many samples as the training data."""
    if clustered != trained:
        raise InputError(
            f"The clusters in {folder} have {clustered} samples, the training data has {trained}. Prepare them from this data."
        )


def check_columns(folder: Path, trained: Mapping[str, Sequence[str]], clustered: pa.Table) -> None:
    """Check, row by row, that the training data are the clustered data."""
    for name, values in trained.items():
        known = clustered[name].to_pylist() if name in clustered.column_names else values
        differing = (row for row, (a, b) in enumerate(zip(values, known, strict=False)) if a != b)
        difference = next((f"the {name} of row {row} differs" for row in differing), None)
        if len(known) != len(values):
            difference = f"{len(known)} rows instead of {len(values)}"
        if difference is not None:
            raise ArtifactError(
                f"The clusters in {folder} belong to other data ({difference}). Run clip-negatives prepare on this data."
            )


def check_same_samples(
    folder: ClustersFolder, dataset: Any, keys: Iterable[Any] | None = None, *, strict: bool = False
) -> None:
    """Check that sample i of a data set is sample i of a clusters folder: a column of the data set equals one of the folder.

    Args:
        folder: the clusters folder.
        dataset: the data set. If `columns_of` finds no column in it, a warning says that only the sizes were compared.
        keys: key, caption or image path of each sample, instead of the columns of the data set.
        strict: a column of any name is expected to be equal, not only one that is named like captions or keys.

    Raises:
        ArtifactError: samples differ.
    """
    expected = {name: folder.samples[name].to_pylist() for name in IDENTITIES if name in folder.samples.column_names}
    columns, faults = columns_of(dataset) if keys is None else {"keys": _keys(keys)}, list[str]()
    if keys is None and expected["key"] == [str(row) for row in range(len(expected["key"]))]:
        del expected["key"]  # row numbers of a csv file identify nothing
    groups = [set(columns)] if strict or keys is not None else [group & columns.keys() for group in NAMES]
    if not any(groups) and any(_first_difference(a, b) is None for a in columns.values() for b in expected.values()):
        return
    for name in sorted(next(filter(None, groups), set())):
        differences = [_first_difference(columns[name], known) for known in expected.values()]
        if None in differences:
            return
        faults.append(f"{name} differs at sample {max(row for row in differences if row is not None)}")
    if faults:
        raise ArtifactError(
            f"The clusters in {folder.path} belong to other data or another order: {faults[0]}. Prepare them from this "
            "data set, in this order, or pass keys= with the key or the caption of each sample."
        )
    warn(
        f"Only the number of samples was compared with {folder.path}, not their order: no column of the data set could be "
        "compared. Pass keys= with the key or the caption of each sample.",
        stacklevel=4,
    )


def columns_of(dataset: Any) -> dict[str, list[str | None]]:
    """Return the columns of a data set that can identify its samples, by name.

    Supported: the attributes in `NAMES`, which open_clip's csv data have; the columns of strings of a ``datasets.Dataset``; and
    a `torch.utils.data.Subset` or `ConcatDataset` of these.
    """
    if isinstance(dataset, Subset):
        return {name: [values[i] for i in dataset.indices] for name, values in columns_of(dataset.dataset).items()}
    if isinstance(dataset, ConcatDataset):
        parts = [columns_of(part) for part in dataset.datasets]
        common = [name for name in parts[0] if all(name in part for part in parts)]
        return {name: [value for part in parts for value in part[name]] for name in common}
    if hasattr(dataset, "column_names") and hasattr(dataset, "with_format"):  # datasets.Dataset
        kinds = {name: getattr(kind, "dtype", None) for name, kind in dataset.features.items()}
        plain = dataset.with_format(None)  # without transforms
        return {name: list(plain[name]) for name, kind in kinds.items() if kind in ("string", "large_string")}
    columns = {}
    for name in sorted(set().union(*NAMES)):
        values: Any = getattr(dataset, name, None)
        is_list = isinstance(values, Sequence) and not isinstance(values, str)
        one_column = is_list or hasattr(values, "to_pylist") or getattr(values, "ndim", 0) == 1
        if one_column and len(values) == len(dataset):
            texts = _texts(values)
            if any(texts):
                columns[name] = texts
    return columns


def _keys(keys: Iterable[Any]) -> list[str | None]:
    """Return the keys that a user gave, or raise InputError if one is not a text."""
    texts = _texts(keys)
    if None in texts:
        fault = f"Expected a text as each of keys=, got another value for sample {texts.index(None)}."
        raise InputError(f"{fault} Pass the key, the caption or the image path of each sample.")
    return texts


def _texts(values: Iterable[Any]) -> list[str | None]:
    """Return strings, and paths as strings; None for anything else."""
    plain = values.to_pylist() if hasattr(values, "to_pylist") else values
    return [str(value) if isinstance(value, str | Path) else None for value in plain]


def _first_difference(values: Sequence[str | None], expected: Sequence[str]) -> int | None:
    """Return the first row in which two columns differ, or None if they are equal; a row that is None is not compared."""
    if len(values) != len(expected):
        return min(len(values), len(expected))
    rows = enumerate(zip(values, expected, strict=True))
    return next((row for row, (value, known) in rows if value is not None and value != known), None)


def warn_of_newer(folder: Path, manifest: Mapping[str, Any], kind: str, files: Sequence[str]) -> None:
    """Warn if readable local files changed after the clusters were made. A copy can have a later time, so this is no error."""
    try:
        created = datetime.fromisoformat(str(manifest.get("clusters_created", manifest.get("created")))).timestamp()
    except (ValueError, OverflowError):
        return
    times = map_files(_modified, files)
    newer = [file for file, changed in zip(files, times, strict=True) if changed > created + TOLERANCE]
    if newer:
        log(
            f"{len(newer)} of {len(files)} checked {kind} changed after the clusters in {folder} were made: "
            f"{newer[0]}, ... If their content changed, run clip-negatives prepare again; if they are copies, ignore this."
        )


def spread(files: pa.Array | pa.ChunkedArray) -> list[str]:
    """Return at most `CHECKED_FILES` evenly spaced files, each once."""
    places = range(0, len(files), -(-len(files) // CHECKED_FILES) or 1)
    return list(dict.fromkeys(files.take(pa.array(places, pa.int64())).to_pylist()))


def map_files(function: Callable[[T], R], items: Iterable[T], chunk: int = CHUNK) -> list[R]:
    """Return the result for each item; threads do the work after the first chunk, unless the file system answers at once."""
    listed, began = list(items), time.perf_counter()
    results = list(map(function, listed[:chunk]))
    if time.perf_counter() - began < len(results) * AT_ONCE:  # threads take twice the time on a local disk
        return results + list(map(function, listed[chunk:]))
    chunks = [listed[start : start + chunk] for start in range(chunk, len(listed), chunk)]
    pool = ThreadPoolExecutor()
    try:
        return results + [result for part in pool.map(lambda part: list(map(function, part)), chunks) for result in part]
    finally:
        pool.shutdown(cancel_futures=True)


def _modified(file: str) -> float:
    try:
        return os.stat(file).st_mtime  # noqa: PTH116  (half the time of `Path.stat`)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return 0.0
