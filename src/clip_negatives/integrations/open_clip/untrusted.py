"""Safe reading of checkpoints in open_clip's training: no code is run, nothing blocks."""

from __future__ import annotations

from typing import Any

import fsspec
import torch

from clip_negatives.dataset.urls import check_local_file
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.safe_reading import one_line


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
