"""Safe reading of checkpoints, images and tars in open_clip's training: no code is run, nothing blocks, memory is limited."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fsspec
import torch
from webdataset.handlers import reraise_exception
from webdataset.tariterators import base_plus_ext

from clip_negatives.dataset import archive
from clip_negatives.dataset.tars import ENDINGS
from clip_negatives.dataset.urls import ShardStream, check_local_file
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.storage.limits import VARIABLE, limit
from clip_negatives.storage.safe_reading import one_line

File = tuple[str, bytes | None]  # name and content of a file in a tar; None if it is too large


def load_checkpoint(file_path: str, map_location: Any = None) -> Any:
    """Return the tensors, numbers and texts of a checkpoint. Replaces ``open_clip_train.file_utils.pt_load``."""
    try:
        check_local_file("checkpoint", file_path)
        with fsspec.open(file_path, "rb") as stream:
            return torch.load(stream, map_location=map_location, weights_only=True)
    except Exception as error:  # neither torch nor fsspec documents its exceptions
        raise ArtifactError(
            f"The checkpoint {file_path} cannot be read as tensors, numbers and texts: {type(error).__name__}: "
            f"{one_line(error)} Resume from a checkpoint that open_clip_train wrote."
        ) from error


def expand_tars(
    data: Iterable[dict[str, Any]],
    handler: Callable[[Exception], bool] = reraise_exception,
    select_files: Callable[[str], bool] | None = None,
    rename_files: Callable[[str], str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the files of open tars as ``webdataset.tariterators.tar_file_expander`` does, within our limits.

    webdataset reads files of any size into memory. Here, as in `prepare`, a sample is skipped if its image, text or json is
    over the limit. Any other file over the limit is skipped alone. A damaged tar is read up to the damage.
    """
    for source in data:
        url = source["url"]
        try:
            for sample in _samples(archive.files(ShardStream(source["stream"], url), None)):
                if (large := next((name for name, content in sample if content is None), None)) is not None:
                    too_large = DataError(
                        f"{large} in {url} is skipped: it is larger than the limit of {limit('member_bytes')} bytes. "
                        f"Raise the limit with {VARIABLE}=member_bytes=NUMBER."
                    )
                    if not handler(too_large):
                        return
                    if (base_plus_ext(large)[1] or "").lower() in ENDINGS:
                        continue
                for name, content in sample:
                    renamed = rename_files(name) if rename_files else name
                    if content is not None and (select_files is None or select_files(renamed)):
                        yield {"fname": renamed, "data": content, "__url__": url}
        except Exception as error:  # as in webdataset: the handler decides
            error.args = (*error.args, url)
            if not handler(error):
                return


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
