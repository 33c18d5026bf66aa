"""open_clip's checkpoints, tars and images, read without running what they may hold or taking what memory they claim."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import open_clip_train.data
import torch
from PIL import EpsImagePlugin

from clip_negatives.dataset import archive
from clip_negatives.dataset.urls import Reads
from clip_negatives.errors import ArtifactError, DataError, UnsupportedError
from clip_negatives.limits import VARIABLE, limit
from clip_negatives.reading import one_line


def load_checkpoint(file_path: str, map_location: Any = None) -> Any:
    """Return what a checkpoint holds: tensors, numbers and texts, and nothing that runs.

    Stands in for ``open_clip_train.file_utils.pt_load``, which before torch 2.6 runs whatever the file says.

    Args:
        file_path: path, or a URL that fsspec knows.
        map_location: where tensors go, as `torch.load` takes it.

    Raises:
        ArtifactError: it cannot be read, is damaged, or holds something else.
    """
    try:
        with fsspec.open(file_path, "rb") as stream:
            return torch.load(stream, map_location=map_location, weights_only=True)
    except Exception as error:  # Neither torch nor the file systems of fsspec document what they raise.
        fault = f"{type(error).__name__}: {one_line(error)}"
        raise ArtifactError(
            f"Expected a checkpoint of tensors, numbers and texts at {file_path}, got {fault} Resume from a checkpoint that "
            "open_clip_train wrote."
        ) from error


@contextmanager
def no_ghostscript() -> Iterator[None]:
    """Keep Pillow, in this process and those it forks, from handing images that are PostScript programs to Ghostscript."""
    before = EpsImagePlugin.gs_binary
    EpsImagePlugin.gs_binary = False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before


class _Any:
    """Hold every ending: open_clip decodes whatever a sample has."""

    def __contains__(self, ending: object) -> bool:
        return True


def expand_tars(sources: Iterable[dict[str, Any]], handler: Callable[[Exception], bool]) -> Iterator[dict[str, Any]]:
    """Yield the files of tars that are open, as ``webdataset.tariterators.tar_file_expander`` does, but within our limits.

    That one holds any member in memory, and looks for the end of one that claims exabytes. A member over the limit is left out
    here, so that its sample lacks it and is left out too, as `prepare` does; a damaged tar ends where the damage is.

    Args:
        sources: each with ``url`` and ``stream``.
        handler: takes what is wrong, and says whether to go on.
    """
    for source in sources:
        if not (yield from _files(source, handler)):
            return


def _files(source: dict[str, Any], handler: Callable[[Exception], bool]) -> Generator[dict[str, Any], None, bool]:
    """Yield the files of a tar; return whether to go on with the next one."""
    try:
        for name, content in archive.files(Reads(source["stream"], source["url"]), _Any()):
            if content is not None:
                yield {"fname": name, "data": content, "__url__": source["url"]}
            elif not handler(_too_large(name, source["url"])):
                return False
    except (*archive.UNREADABLE, DataError, OSError, zlib.error) as error:
        error.args = (*error.args, source["url"])
        return handler(error)
    return True


def _too_large(name: str, url: str) -> DataError:
    return DataError(
        f"Expected members of at most {limit('member_bytes')} bytes, got a larger {name} in {url}, which is left out. "
        f"Raise the limit: {VARIABLE}=member_bytes=NUMBER."
    )


@contextmanager
def limited_tars() -> Iterator[None]:
    """Let open_clip, in this process and those it forks, read tars by `expand_tars`.

    Raises:
        UnsupportedError: this version of open_clip reads them otherwise.
    """
    data, name = open_clip_train.data, "tar_file_expander"
    if not hasattr(data, name):
        raise UnsupportedError(
            f"Expected open_clip_torch 3.x, whose data reads tars by {name}, got one without it. "
            "Install open_clip_torch>=3.0,<4."
        )
    before = getattr(data, name)
    setattr(data, name, expand_tars)
    try:
        yield
    finally:
        setattr(data, name, before)
