"""Files of clusters that another program made: the table of assignments, and the centroids."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec

from clip_negatives.advice import argument
from clip_negatives.dataset.formats import natural
from clip_negatives.dataset.urls import check_local_file, check_reachable, is_plain, reading_from
from clip_negatives.dataset.web import is_web
from clip_negatives.errors import DataError

ENDINGS = {"parquet": (".parquet", ".pq"), "csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz")}


def files_of(location: str) -> tuple[list[str], str]:
    """Return the files of a table, parts in the order of their numbers, and their format: "parquet" or "csv".

    Raises:
        DataError: the file or folder is missing or of another format, or a csv file at a URL.
    """
    if not is_plain(location):
        return _files_at(location), "parquet"
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


def _files_at(url: str) -> list[str]:
    """Return the URLs of the parquet files of a table at a URL."""
    with reading_from(url, "table"):
        system, path = fsspec.core.url_to_fs(url)
        if is_web(url) or not system.isdir(path):  # a web server would send the whole file
            check_reachable("table", url)
            listed = [path]
        else:
            inside = (file for file in system.find(path) if not re.search(r"/[._]", file.removeprefix(path)))
            listed = sorted(inside, key=natural)
    files = [system.unstrip_protocol(file) for file in listed if file.lower().endswith(ENDINGS["parquet"])]
    if not files:
        known = " or ".join(ENDINGS["parquet"])
        raise DataError(
            f"{url} is no file that ends in {known}, and no folder of such files. Copy other tables to a local disk."
        )
    return files


def centroid_files(spec: str) -> list[str]:
    """Return the files with the centroids of the images and of the texts; DataError if one is not named or missing."""
    files = [file.strip() for file in spec.split(",")]
    if len(files) != 2 or not all(files):
        raise DataError(f"{argument('centroids')} must be IMAGES.npy,TEXTS.npy, got {spec!r}.")
    for file in files:
        check_reachable("npy file", file)
    return files
