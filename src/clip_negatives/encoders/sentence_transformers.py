"""Texts through a local sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder, device, one_line
from clip_negatives.errors import DataError


def from_folder(folder: str) -> Encoder:
    """Return an encoder by the folder of a model."""
    if find_spec("sentence_transformers") is None:
        raise DataError("Expected the package sentence-transformers, got none. Install it: pip install sentence-transformers.")
    if not Path(folder).is_dir():
        raise DataError(f"Expected the folder of a sentence-transformers model, got {folder}.")
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(folder, device=device(), local_files_only=True)
    except Exception as error:  # Reading a model fails in many ways, none of them documented.
        raise DataError(f"Expected a sentence-transformers model in {folder}, got {one_line(error)}") from error

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.as_tensor(model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)).float()

    return Encoder(encode)
