"""What was made of each part of a data set: a folder that is there whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_negatives.atomic import replaced_folder

RECORD, VECTORS, SAMPLES, KEYS = "record.json", "vectors.bin", "samples.parquet", "keys.bin"
"""Of a part: what it holds and the size of its files; features row after row; key, text and more; digests of the keys."""

Record = dict[str, Any]


class Store:
    """Keep a folder for each part, named by the digest of the part, so that a part that changed is another one.

    Any number of processes may add parts at once, each its own.

    Args:
        folder: where; made when the first part is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, digest: str) -> Record | None:
        """Return what is known of a part, or None where it is not there or a file of it is missing or cut."""
        part = self.folder / digest
        try:
            record: Record = json.loads((part / RECORD).read_text())
            whole = all((part / name).stat().st_size == size for name, size in record["bytes"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if whole else None

    @contextmanager
    def adding(self, digest: str) -> Iterator[tuple[Path, Record]]:
        """Give a folder to fill and a record to complete; they are the part once the block ends well.

        Raises:
            ArtifactError: it cannot be written.
        """
        if self.record(digest) is None:
            shutil.rmtree(self.folder / digest, ignore_errors=True)
        with replaced_folder(self.folder / digest, known_by=RECORD) as partial:
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

    def tidy(self, wanted: Container[str]) -> None:
        """Remove every part but those that are wanted, and what processes that were killed left."""
        for item in list(self.folder.iterdir()) if self.folder.exists() else ():
            if item.name not in wanted:
                shutil.rmtree(item)
