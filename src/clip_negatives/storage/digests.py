"""Digests of everything that determines a result: rows of data, weights, and the source code of plugins."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import files as files_of
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from clip_negatives.errors import DataError
from clip_negatives.storage.atomic import digest

if TYPE_CHECKING:
    from clip_negatives.host.registry import Registration

ROWS = 65_536  # rows that are hashed at a time; another number changes the digests


def rows_digest(column: pa.ChunkedArray) -> str:
    """Return a digest of the values of a column of strings, in order."""
    sha256 = hashlib.sha256()
    for start in range(0, len(column), ROWS):
        sha256.update(json.dumps(column.slice(start, ROWS).to_pylist()).encode())
    return sha256.hexdigest()


def table_digest(table: pa.Table) -> str:
    """Return a digest of the names and values of the columns of a table, strings and integers, in order."""
    digests = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        is_number = pa.types.is_integer(column.type)
        values = column.to_numpy().astype("<i8").tobytes() if is_number else b""
        digests[name] = hashlib.sha256(values).hexdigest() if is_number else rows_digest(column)
    return digest_of(digests)


def text_digest(text: bytes) -> str:
    """Return a short digest of a text (BLAKE2b, 8 bytes), to recognise the text of a known sample."""
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def weights_digest(weights: str | Path) -> str:
    """Return a digest of a file or folder of weights; for published weights, return their name.

    Raises:
        DataError: the path is a pipe or a device.
    """
    path = Path(weights)
    files = list(_files_in(path)) if path.is_dir() else [path] if path.exists() else []
    for file in files:
        if not file.is_file():  # reading a pipe or a device may never end
            raise DataError(f"{file} is not a regular file, so its weights cannot be read. Name other weights.")
    if path.is_dir():
        return digest_of({str(file.relative_to(path)): digest(file) for file in files})
    return digest(path) if files else str(weights)


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder. Links to folders are followed, but each folder is read once."""
    seen: set[Path] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        if (resolved := Path(name).resolve()) in seen:
            folders.clear()
            continue
        seen.add(resolved)
        folders.sort()  # of two links to one folder, follow the same one on every disk
        yield from (file for file in (Path(name) / entry for entry in files) if file.exists())


def source_digest(item: Registration) -> str | None:
    """Return a digest of the source of a plugin, or None if it has none (compiled code).

    The source is every ``.py`` file in the top-level package of the factory and in that of the entry point. For a module
    outside any package, the source is the file of the module, and the ``.py`` files that the distribution lists.
    """
    factory = item.factory
    while isinstance(factory, functools.partial):
        factory = factory.func
    modules = {getattr(inspect.unwrap(factory), "__module__", None) or type(factory).__module__, item.module}
    files: dict[str, Path] = {}
    for module in modules & sys.modules.keys():
        if package := _top_package(module):
            files |= _sources(package)
        else:
            with suppress(TypeError):  # a built-in module
                files[module] = Path(inspect.getsourcefile(sys.modules[module]) or "absent")
            files |= _listed_sources(item.distribution)
    digests = {name: digest(file) for name, file in files.items() if file.is_file()}
    return digest_of(digests) if digests else None


def package_digest(package: str) -> str:
    """Return a digest of the source of an imported package."""
    return digest_of({name: digest(file) for name, file in _sources(package).items()})


def _top_package(module: str) -> str | None:
    """Return the outermost package of a module, or None. Skip namespace packages: several distributions share them."""
    names = module.split(".")
    packages = (".".join(names[:length]) for length in range(1, len(names) + 1))
    with_file = [name for name in packages if getattr(sys.modules.get(name), "__file__", None) is not None]
    return next((name for name in with_file if hasattr(sys.modules[name], "__path__")), None)


def _sources(package: str) -> dict[str, Path]:
    """Return the ``.py`` files of a package, by package and relative path."""
    folders = [Path(folder) for folder in sys.modules[package].__path__]
    return {f"{package} {file.relative_to(folder)}": file for folder in folders for file in folder.rglob("*.py")}


def _listed_sources(distribution: str | None) -> dict[str, Path]:
    """Return the ``.py`` files that an installed distribution lists, by relative path."""
    try:
        listed = None if distribution is None else files_of(distribution)
    except PackageNotFoundError:
        listed = None
    return {str(file): Path(str(file.locate())) for file in listed or () if file.suffix == ".py"}


def digest_of(entries: Mapping[str, str]) -> str:
    """Return a digest of named texts; their order does not matter."""
    return hashlib.sha256(json.dumps(dict(entries), sort_keys=True).encode()).hexdigest()
