"""Texts through a local sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import DataError


def from_folder(folder: str) -> Encoder:
    """Return an encoder by the folder of a model."""
    if find_spec("sentence_transformers") is None:
        raise DataError("Expected the package sentence-transformers, got none. Install it: pip install sentence-transformers.")
    if not Path(folder).is_dir():
        raise DataError(f"Expected the folder of a sentence-transformers model, got {folder}.")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, local_files_only=True)

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.as_tensor(model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)).float()

    return Encoder(f"sentence_transformers:{folder}", encode)
