"""Captions that a sampler adds to a batch. The loader's workers get them with the sample ids, and tokenize them.

In a batch, the E added captions of a sample follow its own: ``(t_0, E added, t_1, E added, ...)``. Concatenated batches, as in
gradient accumulation, keep this order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_negatives.errors import DataError, InputError, UnsupportedError
from clip_negatives.interfaces import ExtraTextSampler, NegativeSampler

Collate = Callable[[list[Any]], Any]
Tokenize = Callable[[list[str]], Tensor]  # n texts -> model input, shape (n, tokens)


class Captions(Sequence[str]):
    """Captions of a data set, read on access from a sample table that may be a memory-mapped file."""

    def __init__(self, samples: pa.Table) -> None:
        self._texts = samples["text"]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [str(text) for text in self._texts[place].to_pylist()]
        return str(self._texts[place].as_py())


def texts_per_image(sampler: NegativeSampler) -> int:
    """Return the number of captions that a sampler adds to each sample; 0 for most samplers."""
    if not isinstance(sampler, ExtraTextSampler):
        return 0
    if sampler.texts_per_image < 1:
        raise InputError(f"{type(sampler).__name__} must add at least 1 caption to each image, got {sampler.texts_per_image}.")
    return sampler.texts_per_image


def refuse_texts(sampler: NegativeSampler, trainer: str) -> None:
    """Raise UnsupportedError if a sampler adds captions, because `trainer` cannot use them."""
    if texts_per_image(sampler):
        raise UnsupportedError(
            f"The sampler {type(sampler).__name__} adds captions, which {trainer} cannot use. "
            "Train with clip-negatives train, or in your own loop with attach."
        )


@dataclass
class TextsDataset(Dataset[Any]):
    """Samples ``(image, tokens, ...)`` with added captions: one row of tokens and one text id per caption.

    The sample's own caption comes first, then the added captions.
    """

    samples: Dataset[Any]  # items ((image, tokens, ...), id) or (error, id)
    tokenize: Tokenize
    per_sample: int  # number of added captions of each sample

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, item: tuple[int, list[str]]) -> tuple[Any, int, tuple[int, ...]]:
        sample, index = self.samples[item[0]]
        if isinstance(sample, tuple | list) and len(sample) > 1:
            image, own, *rest = sample
            added = self.tokenize(item[1])
            if isinstance(own, Tensor) and isinstance(added, Tensor) and added.shape == (self.per_sample, *own.shape):
                tokens = torch.cat([own[None], added])
                return (image, tokens, *rest), index, tuple(map(text_id, tokens))
            shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part) for part in (own, added)]
            sample = DataError(
                "A sampler that adds captions needs samples (image, tokens), and tokenize= must return tokens of the same "
                f"length: the sample has {shapes[0]}, tokenize returned {shapes[1]} for {self.per_sample} captions."
            )
        elif not isinstance(sample, DataError):
            sample = DataError(f"A sampler that adds captions needs samples (image, tokens), got {type(sample)}.")
        return sample, index, (0,) * (1 + self.per_sample)


def text_id(tokens: Tensor) -> int:
    """Return an id of a caption from its tokens, 0 .. 2^63 - 1; equal tokens have the same id in every process."""
    return int.from_bytes(hashlib.blake2b(tokens.numpy().tobytes(), digest_size=8).digest(), "big") >> 1


def flat_collate(collate: Collate, samples: list[Any]) -> Any:
    """Return a batch ``(images, tokens, ...)`` with tokens of shape (B (1 + E), tokens), one row per caption, or an error."""
    batch = collate(samples)
    if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[1], Tensor):
        return DataError(f"A sampler that adds captions needs batches (images, tokens), got {type(batch)}.")
    images, tokens, *rest = batch
    return (images, tokens.flatten(0, 1), *rest)
