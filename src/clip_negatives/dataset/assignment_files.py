"""Files of clusters that another program made: the table of assignments, and the centroids."""

from __future__ import annotations

from pathlib import Path

from clip_negatives.advice import argument
from clip_negatives.dataset.formats import natural
from clip_negatives.dataset.urls import check_local_file, is_plain
from clip_negatives.errors import DataError

ENDINGS = {"parquet": (".parquet", ".pq"), "csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz")}


def files_of(location: str) -> tuple[list[str], str]:
    """Return the files of a table, parts in the order of their numbers, and their format: "parquet" or "csv".

    Raises:
        DataError: the file or folder is missing, a URL, or of another format.
    """
    if not is_plain(location):
        raise DataError(f"{location} is a URL, but the table is read from a local disk. Copy it there.")
    path = Path(location)
    files = [path]
    if not path.is_dir():
        check_local_file("table", location)
    else:  # writers add files such as _SUCCESS and .part-0.crc
        listed = (file for file in path.rglob("*") if not any(part[0] in "._" for part in file.relative_to(path).parts))
        files = sorted(listed, key=natural)
    for kind, endings in ENDINGS.items():
        if of_kind := [str(file) for file in files if file.name.lower().endswith(endings) and file.is_file()]:
            return of_kind, kind
    known = ", ".join(ending for endings in ENDINGS.values() for ending in endings)
    fault = "is a folder without files that end" if path.is_dir() else "does not end"
    raise DataError(f"{location} {fault} in {known}. Write the table in one of these formats.")


def centroid_files(spec: str) -> list[str]:
    """Return the files with the centroids of the images and of the texts; DataError if one is not named or missing."""
    files = [file.strip() for file in spec.split(",")]
    if len(files) != 2 or not all(files):
        raise DataError(f"{argument('centroids')} must be IMAGES.npy,TEXTS.npy, got {spec!r}.")
    for file in files:
        if not is_plain(file):
            raise DataError(f"{file} is a URL, but centroids are read from a local disk. Copy it there.")
        check_local_file("npy file", file)
    return files
