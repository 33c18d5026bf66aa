"""Folders of encoded parts, each complete or missing, and of the features of the whole data set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clip_negatives.storage.clusters_folder import BROKEN
from clip_negatives.storage.clusters_parts import FEATURES
from clip_negatives.storage.manifest import SAMPLES
from clip_negatives.storage.ownership import new_folder, remove_inside
from clip_negatives.storage.safe_reading import read_tensors
from clip_negatives.storage.source_files import SOURCES

if TYPE_CHECKING:
    from clip_negatives.features.losses import Losses

# Files of a part besides `SAMPLES`: its record with the size of each file, features row by row, and digests of the keys.
RECORD, VECTORS, KEYS = "record.json", "vectors.bin", "keys.bin"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PartStore:
    """Encoded parts, one folder each, named by the digest of the part; several processes may add different parts at once.

    Attributes:
        folder: the folder of the parts, in the work folder `work`.
    """

    folder: Path
    work: Path

    def record(self, digest: str) -> Record | None:
        """Return the record of a part, or None if a file of the part is missing or truncated."""
        part = self.folder / digest
        try:
            record: Record = json.loads((part / RECORD).read_text())
            is_complete = all((part / name).stat().st_size == size for name, size in record["bytes"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if is_complete else None

    @contextmanager
    def adding(self, digest: str) -> Iterator[tuple[Path, Record]]:
        """Yield a folder and a record to fill, which become the part if the block succeeds; failed writes: ArtifactError."""
        if self.record(digest) is None:
            remove_inside(self.work, [self.folder / digest])
        with new_folder(self.folder / digest) as partial:
            record: Record = {}
            yield partial, record
            record["bytes"] = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
            (partial / RECORD).write_text(json.dumps(record))

    def vectors(self, digest: str, start: int, stop: int | None, step: int = 1) -> Tensor:
        """Return rows start, start + step, ... before `stop` of the features of a part, in memory, shape (n, D)."""
        record = self.record(digest) or {"count": 0}
        if record["count"] == 0:
            return torch.zeros(0, 0)
        shape, dtype = (record["count"], record["dim"]), np.dtype(record["dtype"])
        mapped = np.memmap(self.folder / digest / VECTORS, dtype, "r", shape=shape)
        return torch.from_numpy(np.array(mapped[start:stop:step]))


class Mappable(Protocol):
    """Precomputed features, which may be mapped from the user's own file."""

    def mapped(self) -> Tensor | None:
        """Return the features, memory-mapped; None if they cannot be mapped."""


@dataclass(frozen=True)
class EncodedFeatures:
    """Features of a data set, the same on every process.

    Attributes:
        folder: folder of ``samples.parquet``, ``sources.parquet``, ``features.safetensors`` and, if samples are broken,
            ``broken.parquet``.
        fingerprint: fingerprint of the data and the precomputed features.
        losses: torn tars and samples that cannot be read.
        warnings: sentences about samples that are used.
        given: precomputed features. Those that are not in ``features.safetensors`` are mapped from their own file.
    """

    folder: Path
    fingerprint: str
    n_samples: int
    n_broken: int
    losses: Losses
    warnings: list[str]
    given: Mapping[str, Mappable] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Return the files except for the features."""
        return [self.folder / name for name in (SAMPLES, BROKEN, SOURCES) if (self.folder / name).exists()]

    @property
    def features_file(self) -> Path:
        """Return the file of the features."""
        return self.folder / FEATURES

    @property
    def image(self) -> Tensor:
        """Return the image features, unit norm or zero, shape (N, D_image), memory-mapped."""
        return self._features["image"]

    @property
    def text(self) -> Tensor:
        """Return the text features, unit norm or zero, shape (N, D_text), memory-mapped."""
        return self._features["text"]

    def unmap(self) -> None:
        """Close the features; some file systems cannot remove a folder with an open file."""
        self.__dict__.pop("_features", None)

    @cached_property
    def _features(self) -> dict[str, Tensor]:
        stored = read_tensors(self.features_file) if self.features_file.exists() else {}
        mapped = {side: features.mapped() for side, features in self.given.items() if side not in stored}
        return stored | {side: tensor for side, tensor in mapped.items() if tensor is not None}
