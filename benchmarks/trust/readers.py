"""Every reader of the package, with what it is given and what it may answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import readers_of_data
import readers_of_folders
import readers_of_runs
from reader import Reader as Reader

READERS: dict[str, Callable[[Path], Reader]] = {
    "options": readers_of_runs.options,
    "captions": readers_of_data.captions,
    "images": readers_of_data.images,
    "tars": readers_of_data.tars,
    "csv": readers_of_data.table,
    "results": readers_of_runs.results,
    "checkpoints": readers_of_runs.checkpoints,
    "manifest": readers_of_folders.manifest,
    "clustering": readers_of_folders.clustering,
    "samples": readers_of_folders.samples,
    "labels": readers_of_folders.labels,
    "pairs": readers_of_folders.pairs,
}
"""Makes a reader, given a folder of its own."""
