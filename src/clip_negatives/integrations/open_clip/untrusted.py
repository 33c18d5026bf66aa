"""open_clip's checkpoints, tars and images, read without running what they may hold or taking what memory they claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import open_clip_train.data
import torch
import webdataset.tariterators
from PIL import EpsImagePlugin
from webdataset.handlers import reraise_exception
from webdataset.tariterators import base_plus_ext

from clip_negatives.dataset import archive
from clip_negatives.dataset.tars import WANTED
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


File = tuple[str, bytes | None]


def expand_tars(
    data: Iterable[dict[str, Any]],
    handler: Callable[[Exception], bool] = reraise_exception,
    select_files: Callable[[str], bool] | None = None,
    rename_files: Callable[[str], str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the files of tars that are open, as ``webdataset.tariterators.tar_file_expander`` does, but within our limits.

    That one holds any member in memory, and looks for the end of one that claims exabytes. Here a sample whose image, text or
    json is over the limit is left out, as `prepare` does, and of another member the member; a damaged tar ends where the damage
    is. The arguments are those of webdataset.

    Args:
        data: tars, each with ``url`` and ``stream``.
        handler: takes what is wrong, and says whether to go on.
        select_files: says which files are wanted, by name; None wants all.
        rename_files: gives each file another name; None gives none.
    """
    for source in data:
        try:
            for sample in _samples(archive.files(Reads(source["stream"], source["url"]), None)):
                if (large := next((name for name, content in sample if content is None), None)) is not None:
                    if not handler(_too_large(large, source["url"])):
                        return
                    if _ending(large) in WANTED:
                        continue
                for name, content in sample:
                    renamed = rename_files(name) if rename_files else name
                    if content is not None and (select_files is None or select_files(renamed)):
                        yield {"fname": renamed, "data": content, "__url__": source["url"]}
        except Exception as error:  # as webdataset: the handler decides
            error.args = (*error.args, source["url"])
            if not handler(error):
                return


def _samples(files: Iterator[File]) -> Iterator[list[File]]:
    """Yield the files of a sample together, also of the one in which a tar is damaged."""
    held: list[File] = []
    try:
        for file in files:
            if held and base_plus_ext(file[0])[0] != base_plus_ext(held[0][0])[0]:
                yield held
                held = []
            held.append(file)
    except Exception:
        if held:
            yield held
        raise
    if held:
        yield held


def _ending(name: str) -> str:
    return (base_plus_ext(name)[1] or "").lower()


def _too_large(name: str, url: str) -> DataError:
    return DataError(
        f"Expected members of at most {limit('member_bytes')} bytes, got a larger {name} in {url}, which is left out. "
        f"Raise the limit: {VARIABLE}=member_bytes=NUMBER."
    )


@contextmanager
def limited_tars() -> Iterator[None]:
    """Let open_clip read tars by `expand_tars`, in this process and those it forks, to train and to validate.

    Raises:
        UnsupportedError: this version of open_clip reads them otherwise.
    """
    name, modules = "tar_file_expander", (open_clip_train.data, webdataset.tariterators)
    if not all(hasattr(module, name) for module in modules):
        raise UnsupportedError(
            f"Expected open_clip_torch 3.x, whose data reads tars by {name}, got one without it. "
            "Install open_clip_torch>=3.0,<4."
        )
    before = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, expand_tars)
    try:
        yield
    finally:
        for module, function in zip(modules, before, strict=True):
            setattr(module, name, function)
