"""What an encoder is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turn images or texts into features.

    Attributes:
        name: says model, weights and options; equal names give equal features of equal data.
        encode: takes some images (PIL, RGB) or texts, returns float32, shape (n, R).
        learn: takes all texts before any is encoded, for encoders that learn a vocabulary.
        finish: takes what `encode` returned for all samples, shape (N, R), returns the features, shape (N, D), for encoders
            that learn a projection.
    """

    name: str
    encode: Callable[[Sequence[Any]], Tensor]
    learn: Callable[[Sequence[str]], None] | None = None
    finish: Callable[[Tensor], Tensor] | None = None
