"""A sampler that takes the batches of another and adds texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from clip_negatives import registry
from clip_negatives.errors import InputError
from clip_negatives.extra_texts import texts_per_image
from clip_negatives.interfaces import IncorrectPairs, NegativeSampler, SamplingContext


class Adding:
    """Take the batches of another sampler, and leave what to add to a subclass.

    Args:
        context: what to sample for; needs captions.
        of: name of a sampler without options, whose batches are taken.
        per_image: texts that are added for each sample.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: `per_image` is less than 1, there are no captions, or the other sampler adds texts as well.
    """

    def __init__(self, context: SamplingContext, of: str, per_image: int) -> None:
        if per_image < 1:
            raise InputError(f"Expected per_image of at least 1, got {per_image}.")
        if context.captions is None or len(context.captions) != context.n_samples:
            raise InputError("Expected the texts of the data for a sampler that adds texts, got none. Train on csv data.")
        self.context, self.captions, self.texts_per_image = context, context.captions, per_image
        self.sampler: NegativeSampler = registry.create("negative_sampler", of, context)
        if texts_per_image(self.sampler):
            raise InputError(f"Expected a sampler for of= that adds no texts itself, got {of!r}.")
        self.epoch = 0

    def extra_texts(self, batch: Sequence[int]) -> list[str]:
        """Return the texts of each sample of a batch, those of one sample side by side."""
        return [text for index in batch for text in self.texts_of(index)]

    def texts_of(self, index: int) -> list[str]:
        """Return the texts that come with a sample; the same within an epoch, wherever it is resumed."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch for this rank."""
        return iter(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, of the batches and of what is added."""
        self.epoch = epoch
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what resumes the epoch; what is added depends on seed, epoch and sample alone."""
        return {"epoch": self.epoch, "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            InputError: the state is not one of such a sampler.
        """
        if not isinstance(state.get("epoch"), int) or not isinstance(state.get("sampler"), dict):
            raise InputError(f"Expected a state with an epoch and a sampler, got {state!r}.")
        self.sampler.load_state_dict(state["sampler"])
        self.epoch = state["epoch"]

    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw pairs as the sampler does whose batches are taken."""
        return self.sampler.incorrect_pairs(per_image, generator)


class FromSamples(Adding):
    """Add texts of other samples; a subclass chooses them once an epoch."""

    def __init__(self, context: SamplingContext, of: str, per_image: int) -> None:
        super().__init__(context, of, per_image)
        self._chosen: tuple[int, Tensor] | None = None

    def choose(self, epoch: int) -> Tensor:
        """Return the samples whose texts come with each sample in an epoch, int64, shape (N, per_image)."""
        raise NotImplementedError

    def texts_of(self, index: int) -> list[str]:
        """Return the texts that come with a sample."""
        if self._chosen is None or self._chosen[0] != self.epoch:
            self._chosen = self.epoch, self.choose(self.epoch)
        return [self.captions[other] for other in self._chosen[1][index].tolist()]
