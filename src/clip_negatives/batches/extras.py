"""Captions and images that a sampler adds to a batch, and captions that it replaces.

The loader's workers get them with the sample ids, read the images and tokenize the captions. In a batch, the E added captions
of a sample follow its own: ``(t_0, E added, t_1, E added, ...)``; the F added images likewise. Concatenated batches, as in
gradient accumulation, keep this order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from torch import Tensor

from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.interfaces import ExtraImageSampler, ExtraTextSampler, NegativeSampler, OwnTextSampler

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


@dataclass(frozen=True)
class Additions:
    """What a sampler adds to each sample of a batch.

    Attributes:
        texts: number of added captions, E.
        images: number of added images, F.
        own_texts: whether the sampler replaces the captions of the samples.
        positive: whether the added captions are further positives of their image.
        log_weight: log-weight of the added captions and images as negatives.
    """

    texts: int = 0
    images: int = 0
    own_texts: bool = False
    positive: bool = False
    log_weight: float = 0.0

    @classmethod
    def of(cls, sampler: NegativeSampler) -> Additions:
        """Return what a sampler adds; nothing for most samplers."""
        texts = sampler.texts_per_image if isinstance(sampler, ExtraTextSampler) else 0
        images = sampler.images_per_image if isinstance(sampler, ExtraImageSampler) else 0
        if min(texts, images) < 0:
            raise InputError(f"{type(sampler).__name__} must add at least 0 captions and images, got {texts} and {images}.")
        positive, log_weight = getattr(sampler, "texts_are_positive", False), getattr(sampler, "log_weight", 0.0)
        return cls(texts, images, isinstance(sampler, OwnTextSampler), bool(positive), float(log_weight))

    def __bool__(self) -> bool:
        return bool(self.texts or self.images or self.own_texts)

    def __str__(self) -> str:
        added = [name for name, n in (("captions", self.texts), ("images", self.images)) if n]
        return f"adds {' and '.join(added)}" if added else "replaces captions" if self.own_texts else "adds nothing"

    def loss_options(self) -> dict[str, Any]:
        """Return the arguments of `clip_negatives.losses.module.NegativesClipLoss`."""
        options: dict[str, Any] = {"extra_texts": self.texts, "extra_images": self.images}
        return options | {"positive_texts": self.positive, "extra_log_weight": self.log_weight}


def refuse_additions(sampler: NegativeSampler, trainer: str) -> None:
    """Raise UnsupportedError if a sampler adds captions or images, or replaces captions: `trainer` cannot use them."""
    if additions := Additions.of(sampler):
        raise UnsupportedError(
            f"The sampler {type(sampler).__name__} {additions}, which {trainer} cannot use. "
            "Train with clip-negatives train, or in your own loop with attach."
        )


class Item(NamedTuple):
    """A sample of a batch, for the workers of a loader.

    Attributes:
        sample: sample id.
        caption: caption that replaces its own; None keeps it.
        texts: the E added captions.
        images: sample id of each of the F added images, and the caption that replaces its own.
    """

    sample: int
    caption: str | None
    texts: list[str]
    images: list[tuple[int, str | None]]


def with_additions(sampler: NegativeSampler, batch: list[int], n_samples: int) -> list[Any]:
    """Return an `Item` for each sample of a batch, or the batch itself if the sampler adds nothing."""
    if not (additions := Additions.of(sampler)):
        return batch
    n, n_texts, n_images = len(batch), additions.texts, additions.images
    texts: list[str] = _checked(sampler, "extra_texts", batch, n * n_texts) if n_texts else []
    images: list[int] = _checked(sampler, "extra_images", batch, n * n_images) if n_images else []
    if images and not 0 <= min(images) <= max(images) < n_samples:
        raise InputError(f"{type(sampler).__name__} must add images of the samples 0 .. {n_samples - 1}. Repair the sampler.")
    captions: list[str | None] = [None] * (n + len(images))
    if additions.own_texts:
        captions = _checked(sampler, "own_texts", [*batch, *images], len(captions))
    added = list(zip(images, captions[n:], strict=True))
    return [
        Item(index, captions[i], texts[i * n_texts : (i + 1) * n_texts], added[i * n_images : (i + 1) * n_images])
        for i, index in enumerate(batch)
    ]


def _checked(sampler: Any, method: str, samples: list[int], n: int) -> list[Any]:
    """Return the n values that a method of a sampler returns for samples; InputError if there are more or fewer."""
    values: list[Any] = getattr(sampler, method)(samples)
    if len(values) != n:
        name = f"{type(sampler).__name__}.{method}"
        raise InputError(f"{name} must return {n} values for {len(samples)} samples, got {len(values)}. Repair the sampler.")
    return values
