"""Samplers that take the batches of another sampler and add captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from clip_negatives.block_sampling import BlockSampler
from clip_negatives.errors import InputError
from clip_negatives.host import registry
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import (
    ExtraImageSampler,
    ExtraTextSampler,
    IncorrectPairs,
    NegativeSampler,
    ObservingSampler,
    OwnTextSampler,
    SamplingContext,
)


class Adding:
    """Sampler that adds captions to the batches of another sampler; a subclass defines `texts_of`, the added captions.

    Args:
        context: data and batch size; needs captions.
        of: name of the other sampler, without options.
        per_image: captions added for each sample; 0 adds none.
        log_weight: log-weight of the added captions as negatives, below inf.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: there are no captions, or the other sampler adds captions too.
    """

    def __init__(self, context: SamplingContext, of: str, per_image: int, log_weight: float = 0.0) -> None:
        if context.captions is None or len(context.captions) != context.n_samples:
            raise InputError("A sampler that adds captions needs the captions of the data. Train on csv data.")
        self.context, self.captions = context, context.captions
        self.texts_per_image, self.log_weight = per_image, log_weight
        self.sampler: NegativeSampler = registry.create("negative_sampler", of, context)
        if isinstance(self.sampler, ExtraTextSampler | ExtraImageSampler | OwnTextSampler):
            raise InputError(f"of={of} adds captions itself. Use a sampler that adds none, such as of=in_batch.")
        self.keeps_native_order = bool(getattr(self.sampler, "keeps_native_order", False))
        self.epoch = 0
        if isinstance(self.sampler, ObservingSampler):  # then this sampler is an ObservingSampler too
            learner: Any = self
            for name in ("observe", "learned", "load_learned"):
                setattr(learner, name, getattr(self.sampler, name))
        if isinstance(self.sampler, BlockSampler):
            self.n_blocks, self.batches_after = self.sampler.n_blocks, self.sampler.batches_after

    def extra_texts(self, batch: Sequence[int]) -> list[str]:
        """Return the added captions of each sample of a batch, sample by sample."""
        return [text for index in batch for text in self.texts_of(index)]

    def texts_of(self, index: int) -> list[str]:
        """Return the added captions of a sample: the same ones during an epoch, also after resuming."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch for this rank."""
        return iter(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the batches and of the added captions."""
        self.epoch = epoch
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that resumes the epoch; the added captions depend only on seed, epoch and sample."""
        return {"epoch": self.epoch, "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state that `state_dict` returned.

        Raises:
            InputError: the state belongs to another kind of sampler.
        """
        if not isinstance(state.get("epoch"), int) or not isinstance(state.get("sampler"), dict):
            keys = ", ".join(map(str, state))
            raise InputError(
                f"The state of a sampler that adds captions needs an epoch and a sampler (its keys: {keys}). Resume with the "
                "sampler that saved it."
            )
        self.sampler.load_state_dict(state["sampler"])
        self.epoch = state["epoch"]

    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw pairs with the other sampler."""
        return self.sampler.incorrect_pairs(per_image, generator)


class FromSamples(Adding):
    """Sampler that adds captions of other samples; a subclass defines `choose`, called once an epoch."""

    def __init__(self, context: SamplingContext, of: str, per_image: int, log_weight: float = 0.0) -> None:
        check_number("per_image", per_image, at_least=1)
        super().__init__(context, of, per_image, log_weight)
        self._chosen: tuple[int, Tensor] | None = None

    def choose(self, epoch: int) -> Tensor:
        """Return, for each sample, the samples whose captions are added to it in an epoch, int64, shape (N, per_image)."""
        raise NotImplementedError

    def chosen(self) -> Tensor:
        """Return the result of `choose` for the present epoch."""
        if self._chosen is None or self._chosen[0] != self.epoch:
            self._chosen = self.epoch, self.choose(self.epoch)
        return self._chosen[1]

    def texts_of(self, index: int) -> list[str]:
        """Return the added captions of a sample."""
        return [self.captions[other] for other in self.chosen()[index].tolist()]
