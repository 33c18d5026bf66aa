"""open_clip's checkpoints, and the images it is given, read without running what they may hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import torch
from PIL import EpsImagePlugin

from clip_negatives.errors import ArtifactError
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
