"""What an encoder is."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Fit = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""``fit(raw (m, R)) -> project(raw (n, R)) -> (n, D)``."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turn images or texts into features.

    Attributes:
        encode: takes some images (PIL, RGB) or texts, returns float32, shape (n, R).
        learn: takes all texts, or of many some, evenly spaced over the data, before any is encoded, for encoders that learn
            a vocabulary.
        fit: for encoders that learn a projection of what `encode` returns: takes that of some samples, evenly spaced
            over the data, shape (m, R), and returns the function from (n, R) to features (n, D).
        name: says model, weights and options; equal names give equal features of equal data. Given by `image_encoder`
            and `text_encoder`.
    """

    encode: Callable[[Sequence[Any]], Tensor]
    learn: Callable[[Sequence[str]], None] | None = None
    fit: Fit | None = None
    name: str = ""


def batched(samples: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split samples into parts of `size`, the last one perhaps smaller."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def device() -> str:
    """Return where models run: a GPU if there is one, that of this process where torchrun started several."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}"


def one_line(error: Exception) -> str:
    """Return an error of another library on one line, shortened, for a sentence of ours."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200)
