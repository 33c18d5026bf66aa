"""Precomputed features in place of encoders: their checks, and their rows at unit norm."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from clip_negatives.dataset.given import Place, feature_places
from clip_negatives.dataset.tables import TablePairs
from clip_negatives.errors import DataError
from clip_negatives.features.column import ColumnFeatures
from clip_negatives.features.npy import NpyFeatures
from clip_negatives.storage.source_files import SourceFile

# Largest difference of a norm from 1 that is taken for rounding; a row within it is used as it is.
ROUNDING = {torch.float16: 2e-3, torch.float32: 1e-4}


class GivenFeatures(Protocol):
    """Precomputed features of the images or of the texts of a data set, one row per sample."""

    @property
    def name(self) -> str:
        """Return a name for messages."""

    @property
    def n_rows(self) -> int:
        """Return the number of rows."""

    def stamp(self) -> bytes:
        """Return bytes that change when the features change."""

    def sources(self) -> Sequence[SourceFile]:
        """Return the files, with size and digest."""

    def blocks(self) -> Iterator[tuple[str, int, Tensor]]:
        """Yield all rows in blocks: a place such as a file, the number of the first row in it, and the rows, float."""

    def mapped(self) -> Tensor | None:
        """Return all rows, memory-mapped, float32 or float16, shape (N, D); None if they must be copied to one file first."""


def open_features(spec: str | Path, source: TablePairs) -> dict[str, GivenFeatures]:
    """Return the precomputed features of a table by "image" and "text"; see `clip_negatives.dataset.given.feature_places`.

    Raises:
        DataError: features cannot be read, or are not as many as the rows of the table.
    """
    places = feature_places(spec)
    sides = {"image": places.image, "text": places.text}
    given = {side: _opened(place, source) for side, place in sides.items() if place is not None}
    names = {features.name: features.n_rows for features in given.values()} | {str(source.path): len(source)}
    (first, rows), *others = names.items()
    for name, count in others:
        if count != rows:
            raise DataError(f"{first} has {rows} rows, but {name} has {count}. Row i of both must be the same sample.")
    return given


def stamp_of(given: Mapping[str, GivenFeatures]) -> str:
    """Return a digest that changes with the files of the features."""
    sha256 = hashlib.sha256()
    for side, features in given.items():
        sha256.update(side.encode() + b"\0" + features.stamp())
    return sha256.hexdigest()


def manifest_entry(given: Mapping[str, GivenFeatures]) -> dict[str, list[dict[str, object]]]:
    """Return name, size and digest of the files of the features, as JSON values."""
    return {
        side: [{"file": source.file, "bytes": source.size, "sha256": source.sha256} for source in features.sources()]
        for side, features in given.items()
    }


def unit_rows(features: GivenFeatures) -> Iterator[Tensor]:
    """Yield all rows at unit norm, float16 if they are stored so, else float32."""
    for rows, norms, is_unit in _checked(features):
        stored = rows if rows.dtype == torch.float16 else rows.float()
        scaled = (rows.double() / norms[:, None]).to(stored.dtype)
        yield torch.where(is_unit[:, None], stored, scaled).contiguous()


def are_unit(features: GivenFeatures) -> bool:
    """Return whether all rows have unit norm, up to rounding; DataError if a row is zero or not finite."""
    return sum(int((~is_unit).sum()) for _, _, is_unit in _checked(features)) == 0


def sides_to_copy(given: Mapping[str, GivenFeatures], keep: bool) -> set[str]:
    """Check the features before anything is encoded, and return those that cannot be mapped from their own file.

    Args:
        given: the features by side.
        keep: whether all features are copied, because the user keeps them.
    """
    copied = set[str]()
    for side, features in given.items():
        must_copy = keep or features.mapped() is None
        is_checked_later = must_copy and len(given) > 1  # by the copy, because nothing is encoded before it
        if is_checked_later or not are_unit(features) or must_copy:
            copied.add(side)
    return copied


def _checked(features: GivenFeatures) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows, their norms, and whether these are 1; DataError for the first row that is zero or not finite."""
    for place, start, rows in features.blocks():
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        if len(bad := (~(norms.isfinite() & (norms > 0))).nonzero()):
            row = int(bad[0])
            fault = "is zero" if norms[row] == 0 else "has NaN or infinity"
            raise DataError(f"Row {start + row} of {place} {fault}. Compute it again, or leave the sample out everywhere.")
        yield rows, norms, (norms - 1).abs() <= ROUNDING.get(rows.dtype, ROUNDING[torch.float32])


def _opened(place: Place, source: TablePairs) -> GivenFeatures:
    return ColumnFeatures.of(source, place) if isinstance(place, str) else NpyFeatures.open(place)
