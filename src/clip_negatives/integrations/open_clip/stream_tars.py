"""Tars in open_clip's training: opened as `prepare` opens them, and read within our limits.

webdataset opens fewer kinds of addresses, repeats no failed read, and goes on without a tar that it cannot read.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import open_clip_train.data
import webdataset.tariterators
from webdataset.handlers import reraise_exception
from webdataset.tariterators import base_plus_ext

from clip_negatives.dataset import archive
from clip_negatives.dataset.tars import ENDINGS
from clip_negatives.dataset.urls import ShardStream, open_url
from clip_negatives.errors import DataError, MissingShardError
from clip_negatives.integrations.open_clip.adapter import Replacement
from clip_negatives.storage.limits import VARIABLE, limit

FRUITLESS_TARS = 100  # stop after this many tars in a row without a file that can be read

Source = dict[str, Any]  # of webdataset: url of a tar and, once it is open, stream
File = tuple[str, bytes | None]  # name and content of a file in a tar; None if it is too large
Handler = Callable[[Exception], bool]


def replacements(known_missing: frozenset[str]) -> list[Replacement]:
    """Return the attributes of open_clip and webdataset to replace."""
    functions = {"url_opener": functools.partial(open_tars, known_missing=known_missing), "tar_file_expander": expand_tars}
    modules = open_clip_train.data, webdataset.tariterators
    return [(module, name, value) for module in modules for name, value in functions.items()]


def open_tars(
    data: Iterable[Source],
    handler: Handler = reraise_exception,
    *,
    known_missing: frozenset[str] = frozenset(),
) -> Iterator[Source]:
    """Open tars in place of ``webdataset.tariterators.url_opener``.

    Raises:
        MissingShardError: a tar cannot be opened, and is not in `known_missing`; of these, the handler decides.
    """
    for source in data:
        try:
            stream = open_url(source["url"])
        except MissingShardError as error:  # noqa: PERF203  (one for each tar)
            if source["url"] not in known_missing:
                raise
            if not handler(error):
                return
        else:
            yield {**source, "stream": stream}


def expand_tars(
    data: Iterable[Source],
    handler: Handler = reraise_exception,
    select_files: Callable[[str], bool] | None = None,
    rename_files: Callable[[str], str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the files of open tars as ``webdataset.tariterators.tar_file_expander`` does, within our limits.

    webdataset reads files of any size into memory. Here, as in `prepare`, a sample is skipped if its image, text or json is
    over the limit. Any other file over the limit is skipped alone. A damaged tar is read up to the damage.

    Raises:
        MissingShardError: a tar cannot be read to its end.
        DataError: no tar of a whole pass, or none of `FRUITLESS_TARS` in a row, has a file; the stream would never end.
    """
    fruitless, any_file = list[str](), False
    for source in data:
        fruitless.append(source["url"])
        try:
            for name, content in _files(source, handler):
                fruitless.clear()
                any_file = True
                renamed = rename_files(name) if rename_files else name
                if select_files is None or select_files(renamed):
                    yield {"fname": renamed, "data": content, "__url__": source["url"]}
        except MissingShardError:
            raise
        except Exception as error:  # as in webdataset: the handler decides
            error.args = (*error.args, source["url"])
            if not handler(error):
                return
        finally:
            source["stream"].close()
        if len(fruitless) >= FRUITLESS_TARS:
            raise _no_files(fruitless)
    if fruitless and not any_file:
        raise _no_files(fruitless)


def _files(source: Source, handler: Handler) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of a tar, without those that are too large."""
    for sample in _samples(archive.files(ShardStream(source["stream"], source["url"]), None)):
        if (large := next((name for name, content in sample if content is None), None)) is not None:
            too_large = DataError(
                f"{large} in {source['url']} is skipped: it is larger than the limit of {limit('member_bytes')} bytes. "
                f"Raise the limit with {VARIABLE}=member_bytes=NUMBER."
            )
            if not handler(too_large):
                raise too_large
            if (base_plus_ext(large)[1] or "").lower() in ENDINGS:
                continue
        yield from ((name, content) for name, content in sample if content is not None)


def _no_files(tars: list[str]) -> DataError:
    count = "The tar" if len(tars) == 1 else f"Each of {len(tars)} tars in a row"
    where = f"{tars[0]} has" if len(tars) == 1 else f"(first: {tars[0]}) has"
    return DataError(f"{count} {where} no file that can be read. Repair the data, or remove these tars from them.")


def _samples(files: Iterator[File]) -> Iterator[list[File]]:
    """Yield the files of each sample; if the tar is damaged, yield the files before the damage, then raise its error."""
    damage: list[Exception] = []

    def before_damage() -> Iterator[File]:
        try:
            yield from files
        except Exception as error:
            damage.append(error)

    for _, sample in itertools.groupby(before_damage(), key=lambda file: base_plus_ext(file[0])[0]):
        yield list(sample)
    if damage:
        raise damage[0]
