"""Write the catalogue in the forms that CLIP trainers read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import webdataset as wds

from clip_negatives.atomic import replaced_folder
from clip_negatives.catalogue.listings import COLUMNS, Catalogue, load
from clip_negatives.errors import InputError

FORMATS = ("csv", "webdataset", "both")

MARKER = "catalogue.json"
"""File that says that a folder is an export; only such a folder is replaced."""


def export(directory: str | Path, *, split: str = "train", format: str = "both", shard_size: int = 1000) -> Path:  # noqa: A002
    """Write a split as csv with PNG images, as webdataset tars, or both, atomically.

    The csv ``{split}.csv`` is separated by tabs and has the columns ``filepath`` and ``title``, which open_clip reads by
    default, and the other columns of a listing. Paths are absolute, as open_clip resolves them from the working directory.
    The tars ``{split}-000000.tar`` ... hold ``.png``, ``.txt`` and ``.json`` by key, beside a ``sizes.json`` from which
    open_clip takes the number of samples.

    Args:
        directory: folder to make; an older export there is replaced.
        split: see `load`.
        format: "csv", "webdataset" or "both".
        shard_size: samples of a tar.

    Returns:
        The folder.

    Raises:
        InputError: an argument is not among its values.
        ArtifactError: the folder is something else, or cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"Expected a format among {', '.join(FORMATS)}, got {format!r}.")
    if shard_size < 1:
        raise InputError(f"Expected a shard size of at least 1, got {shard_size}.")
    target = Path(directory).absolute()
    catalogue = load(split)
    with replaced_folder(target, known_by=MARKER) as folder:
        if format in ("csv", "both"):
            _write_csv(catalogue, folder, target, split)
        if format in ("webdataset", "both"):
            _write_tars(catalogue, folder, split, shard_size)
        (folder / MARKER).write_text(json.dumps({"split": split, "format": format, "listings": len(catalogue)}) + "\n")
    return target


def _write_csv(catalogue: Catalogue, folder: Path, target: Path, split: str) -> None:
    images = folder / "images"
    images.mkdir()
    keys = catalogue.column("key")
    with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["filepath", "title", *(name for name in COLUMNS if name != "text")])
        rest = [catalogue.column(name) for name in COLUMNS if name != "text"]
        for row, (key, text, *more) in enumerate(zip(keys, catalogue.column("text"), *rest, strict=True)):
            catalogue.image(row).save(images / f"{key}.png")
            writer.writerow([target / "images" / f"{key}.png", text, *more])


def _write_tars(catalogue: Catalogue, folder: Path, split: str, shard_size: int) -> None:
    columns = {name: catalogue.column(name) for name in COLUMNS}
    sizes: dict[str, int] = {}
    for start in range(0, len(catalogue), shard_size):
        shard = folder / f"{split}-{start // shard_size:06d}.tar"
        stop = min(start + shard_size, len(catalogue))
        sizes[shard.name] = stop - start
        with wds.TarWriter(str(shard)) as writer:
            for row in range(start, stop):
                fields = {name: values[row] for name, values in columns.items()}
                sample = {"__key__": fields["key"], "png": catalogue.image(row), "txt": fields["text"], "json": fields}
                writer.write(sample)
    (folder / "sizes.json").write_text(json.dumps(sizes, indent=2) + "\n")
