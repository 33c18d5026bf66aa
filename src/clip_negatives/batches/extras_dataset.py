"""A data set with the captions and images that a sampler adds, and the batches of such samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_negatives.batches.extras import Additions, Item, Tokenize
from clip_negatives.errors import DataError


@dataclass
class ExtrasDataset(Dataset[Any]):
    """Samples ``(image, tokens, ...)`` with added captions and images, read as `Item`.

    There is one row of tokens per caption, the sample's own caption first. With added images, there is one row per image too.
    The id of each caption comes with the sample: own caption, added captions, captions of the added images.
    """

    samples: Dataset[Any]  # items ((image, tokens, ...), id) or (error, id)
    tokenize: Tokenize | None
    additions: Additions

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> tuple[Any, int, tuple[int, ...]]:
        pairs = [(item.sample, item.caption), *item.images]
        samples = [self.samples[index][0] for index, _ in pairs]
        error = next((sample for sample in samples if isinstance(sample, DataError)), None)
        if error is None:
            try:
                return self._joined(samples, [caption for _, caption in pairs], item)
            except DataError as fault:
                error = fault
        return error, item.sample, (0,) * (1 + self.additions.texts + self.additions.images)

    def _joined(self, samples: list[Any], captions: list[str | None], item: Item) -> tuple[Any, int, tuple[int, ...]]:
        for sample in samples:
            if not isinstance(sample, tuple | list) or len(sample) < 2 or not isinstance(sample[1], Tensor):
                form = [type(part).__name__ for part in sample] if isinstance(sample, tuple | list) else type(sample)
                raise DataError(f"A sampler that {self.additions} needs samples (image, tokens), got {form}.")
        images, own = [sample[0] for sample in samples], [sample[1] for sample in samples]
        if self.additions.own_texts:
            own = list(self._tokens([caption or "" for caption in captions], own[0]))
        tokens = torch.cat([own[0][None], self._tokens(item.texts, own[0])])
        ids = tuple(map(text_id, [*tokens, *own[1:]]))
        image = images[0]
        if self.additions.images:
            if not all(isinstance(other, Tensor) and other.shape == image.shape for other in images):
                raise DataError("A sampler that adds images needs images that are tensors of one shape. Resize the images.")
            image = torch.stack(images)
        return (image, tokens, *samples[0][2:]), item.sample, ids

    def _tokens(self, texts: list[str], like: Tensor) -> Tensor:
        """Return the tokens of texts, of the same length as the tokens `like`."""
        if not texts:
            return like.new_empty(0, *like.shape)
        tokens = self.tokenize(texts) if self.tokenize is not None else None
        if isinstance(tokens, Tensor) and tokens.shape == (len(texts), *like.shape):
            return tokens
        found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens)
        raise DataError(
            f"A sampler that {self.additions} needs samples (image, tokens), and tokenize= must return tokens of the same "
            f"length: the sample has {tuple(like.shape)}, tokenize returned {found} for {len(texts)} captions."
        )


def text_id(tokens: Tensor) -> int:
    """Return an id of a caption from its tokens, 0 .. 2^63 - 1; equal tokens have the same id in every process."""
    return int.from_bytes(hashlib.blake2b(tokens.numpy().tobytes(), digest_size=8).digest(), "big") >> 1


def flattened(additions: Additions, batch: Any) -> Any:
    """Return a batch ``(images, tokens, ...)`` with one row per image and per caption, or an error."""
    if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[1], Tensor):
        return DataError(f"A sampler that {additions} needs batches (images, tokens), got {type(batch)}.")
    images, tokens, *rest = batch
    if not additions.images:
        return (images, tokens.flatten(0, 1), *rest)
    if not isinstance(images, Tensor):
        return DataError(f"A sampler that adds images needs batches with a tensor of images, got {type(images)}.")
    return (images.flatten(0, 1), tokens.flatten(0, 1), *rest)
