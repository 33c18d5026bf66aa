"""Write the catalogue in formats that CLIP trainers read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from clip_negatives.catalogue.listings import COLUMNS, Catalogue, load
from clip_negatives.dataset.columns import IMAGE, SEPARATOR, TEXT
from clip_negatives.errors import InputError
from clip_negatives.storage.ownership import OwnedFolder
from clip_negatives.storage.paths import check_writable

FORMATS = ("csv", "webdataset", "both")
EXPORT = OwnedFolder("catalogue", "catalogue.json")
EXPORTED = 1_700_000_000  # modification time of every image: a repeated export has the same fingerprint


def export(directory: str | Path, *, split: str = "train", format: str = "both", shard_size: int = 1000) -> Path:  # noqa: A002
    """Write a split as csv with PNG images, as webdataset tars, or both, atomically, and return the folder.

    ``{split}.csv`` is separated by tabs. It has open_clip's default columns ``filepath`` and ``title``, and the other columns
    of a listing. Paths are absolute, because open_clip resolves relative paths from the working directory. The tars,
    ``{split}-000000.tar`` and so on, hold a ``.png``, ``.txt`` and ``.json`` for each key. ``sizes.json`` is for open_clip.

    Args:
        directory: folder to write; an older export is replaced.
        split: see `load`.
        format: "csv", "webdataset" or "both".
        shard_size: samples per tar.

    Raises:
        InputError: an argument is invalid.
        ArtifactError: the folder is not an export, or cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"Expected a format among {', '.join(FORMATS)}, got {format!r}.")
    if shard_size < 1:
        raise InputError(f"Expected shard_size >= 1, got {shard_size}.")
    target = EXPORT.check(directory)
    check_writable(target)
    catalogue = load(split)
    with EXPORT.replacing(target) as folder:
        if format in ("csv", "both"):
            _write_csv(catalogue, folder, target, split)
        if format in ("webdataset", "both"):
            _write_tars(catalogue, folder, split, shard_size)
        EXPORT.write_manifest(folder, {"split": split, "formats": format, "listings": len(catalogue)})
    return target


def _write_csv(catalogue: Catalogue, folder: Path, target: Path, split: str) -> None:
    (folder / "images").mkdir()
    files = [f"images/{key}.png" for key in catalogue.column("key")]
    for row, file in enumerate(files):
        catalogue.image(row).save(folder / file)
        os.utime(folder / file, (EXPORTED, EXPORTED))
    columns = {IMAGE: [str(target / file) for file in files], TEXT: catalogue.column("text")}
    columns |= {name: catalogue.column(name) for name in COLUMNS if name != "text"}
    import pandas as pd

    pd.DataFrame(columns).to_csv(folder / f"{split}.csv", sep=SEPARATOR, index=False)


def _write_tars(catalogue: Catalogue, folder: Path, split: str, shard_size: int) -> None:
    import webdataset as wds  # imports torch

    columns = {name: catalogue.column(name) for name in COLUMNS}
    sizes: dict[str, int] = {}
    for start in range(0, len(catalogue), shard_size):
        shard = folder / f"{split}-{start // shard_size:06d}.tar"
        rows = range(start, min(start + shard_size, len(catalogue)))
        sizes[shard.name] = len(rows)
        with wds.TarWriter(str(shard)) as writer:
            for row in rows:
                fields = {name: values[row] for name, values in columns.items()}
                writer.write({"__key__": fields["key"], "png": catalogue.image(row), "txt": fields["text"], "json": fields})
    (folder / "sizes.json").write_text(json.dumps(sizes, indent=2) + "\n")
