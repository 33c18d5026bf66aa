"""Texts that a sampler adds to a batch: they travel with the indices to the workers, which tokenize them.

A text then has those that come with it behind it, ``(t_0, its E texts, t_1, its E texts, ...)``: concatenated batches, as
gradient accumulation makes them, keep this order, and any model that encodes texts one by one takes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_negatives.errors import DataError, InputError, UnsupportedError
from clip_negatives.interfaces import ExtraTexts, NegativeSampler

if TYPE_CHECKING:
    import pyarrow as pa

Tokenize = Callable[[list[str]], Tensor]
"""Turns n texts into what the model takes, shape (n, tokens)."""


class Captions(Sequence[str]):
    """Read the texts of samples where they lie, which may be a file of any size.

    Args:
        samples: table of the samples of a clusters folder, with a column "text".
    """

    def __init__(self, samples: pa.Table) -> None:
        self._texts = samples["text"]

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """Return the text of a sample, or those of some."""
        if isinstance(place, slice):
            return [str(text) for text in self._texts[place].to_pylist()]
        return str(self._texts[place].as_py())


def texts_per_image(sampler: NegativeSampler) -> int:
    """Return how many texts a sampler adds for each sample, 0 for most.

    Raises:
        InputError: it has room for texts, but adds fewer than 1.
    """
    if not isinstance(sampler, ExtraTexts):
        return 0
    if sampler.texts_per_image < 1:
        raise InputError(f"Expected a sampler that adds texts to add at least 1 for each image, got {sampler.texts_per_image}.")
    return sampler.texts_per_image


def refuse_texts(sampler: NegativeSampler, who: str) -> None:
    """Make sure that a sampler adds no texts.

    Raises:
        UnsupportedError: it does; `who` has no place for them.
    """
    if texts_per_image(sampler):
        raise UnsupportedError(
            f"Expected a sampler that adds no texts for {who}, got {type(sampler).__name__}. "
            "Train with clip-negatives train, or in a loop of your own with attach."
        )


class TextBatches:
    """Yield the batches of a sampler with its texts: ``[(index, texts), ...]``.

    Args:
        sampler: which texts.
        batches: which batches; None takes those of the sampler.
    """

    def __init__(self, sampler: NegativeSampler, batches: Iterable[list[int]] | None = None) -> None:
        self.sampler = sampler
        self.batches = sampler if batches is None else batches

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, list[str]]]]:
        each = texts_per_image(self.sampler)
        for batch in self.batches:
            texts = self.sampler.extra_texts(batch)  # type: ignore[attr-defined]
            if len(texts) != each * len(batch):
                raise InputError(
                    f"Expected {each} extra texts for each of {len(batch)} samples, got {len(texts)} from "
                    f"{type(self.sampler).__name__}."
                )
            yield [(index, texts[place * each : (place + 1) * each]) for place, index in enumerate(batch)]


class TextsDataset(Dataset[Any]):
    """Put the tokens of the texts that come with a sample behind those of its own, and number all these texts.

    Args:
        samples: gives ``((image, tokens, ...), index)``, or an error in the place of the sample.
        tokenize: the tokenizer of the data set.
        each: texts that come with a sample.
    """

    def __init__(self, samples: Dataset[Any], tokenize: Tokenize, each: int) -> None:
        self.samples = samples
        self.tokenize = tokenize
        self.each = each

    def __getitem__(self, item: tuple[int, list[str]]) -> tuple[Any, tuple[int, ...]]:
        sample, index = self.samples[item[0]]
        nothing = (index, *(0,) * (1 + self.each))
        if isinstance(sample, DataError):
            return sample, nothing
        if not isinstance(sample, tuple | list) or len(sample) < 2:
            return DataError(f"Expected samples (image, tokens) for a sampler that adds texts, got {type(sample)}."), nothing
        image, own, *rest = sample
        further = self.tokenize(item[1])
        fits = isinstance(own, Tensor) and isinstance(further, Tensor) and further.shape == (self.each, *own.shape)
        if not fits:
            shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one) for one in (own, further)]
            return DataError(
                "Expected samples (image, tokens) and a tokenizer that gives tensors of such tokens for a sampler that adds "
                f"texts, got {shapes[0]} in the sample and {shapes[1]} for {self.each} texts."
            ), nothing
        tokens = torch.cat([own[None], further])
        return (image, tokens, *rest), (index, *map(number_of, tokens))


def number_of(tokens: Tensor) -> int:
    """Return a number of a text, 0 .. 2^63 - 1, by what the model is shown of it: the same for the same, in every process."""
    digest = hashlib.blake2b(tokens.numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class FlatCollate:
    """Collate samples of ``(image, tokens of 1 + E texts, ...)`` to images and one row for each text."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        """Return ``(images, tokens, ...)``, tokens of shape (B (1 + E), tokens), or an error in their place."""
        batch = self.collate(samples)
        if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[1], Tensor):
            return DataError(f"Expected batches (images, tokens) for a sampler that adds texts, got {type(batch)}.")
        images, tokens, *rest = batch
        return (images, tokens.flatten(0, 1), *rest)
