"""A negative sampler that learns from the steps of the training."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from clip_negatives.errors import InputError, PluginError
from clip_negatives.interfaces import NegativeSampler, ObservingSampler, SamplingContext
from clip_negatives.plugin_code import reported
from clip_negatives.printing import log
from clip_negatives.sampling import Plan, PlannedSampler, name_of
from clip_negatives.step import Step

EPOCH = "sampler.epoch"  # has a dot, so that it differs from the names of the memory
NEW = "new."  # prefix of what was learned since the epoch began


class LearningSampler(PlannedSampler):
    """A `PlannedSampler` with a memory: each step changes it, and the plan of the next epoch uses it.

    Subclasses define `observe`, which writes to `new`, and a plan that reads `memory`. What is learned in an epoch reaches
    `memory` when the next epoch begins. So the batches of an epoch never depend on how far a loader has read ahead, and a
    stopped epoch continues with the same batches. Every process observes the same steps, and so learns the same.

    Args:
        context: data, batch size, processes and seed of the training run.
        plan: see `PlannedSampler`.
        **memory: tensors of the memory at the beginning, by name, on the CPU.

    Attributes:
        memory: what was learned before this epoch.
        new: what was learned until now, in tensors of the same shapes.
    """

    def __init__(self, context: SamplingContext, plan: Plan, **memory: Tensor) -> None:
        super().__init__(context, plan)
        if wrong := next((name for name, value in memory.items() if not isinstance(value, Tensor)), None):
            raise InputError(f"The memory {wrong!r} of {name_of(self)} must be a tensor, got {type(memory[wrong]).__name__}.")
        self.memory = memory
        self.new = {name: value.clone() for name, value in memory.items()}

    def observe(self, step: Step, losses: Tensor) -> None:
        """Learn from a step.

        Args:
            step: the step, without gradients. ``step.samples.candidates`` are the G samples of all processes, and
                ``step.candidates`` their live features.
            losses: loss of each of these samples, the mean of its image's and its text's, float32, shape (G,).
        """
        raise PluginError(f"The sampler {name_of(self)} has no observe(step, losses). Define it.")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than the present epoch uses what was learned."""
        if epoch != self._epoch:
            layouts = [{name: (value.shape, value.dtype) for name, value in part.items()} for part in (self.memory, self.new)]
            if layouts[0] != layouts[1]:
                raise PluginError(
                    f"observe of the sampler {name_of(self)} changes the names, shapes or dtypes of its memory. Write into the "
                    "tensors of self.new."
                )
            self.memory = {name: value.clone() for name, value in self.new.items()}
            super().set_epoch(epoch)

    def learned(self) -> dict[str, Tensor]:
        """Return the memory, for checkpoints: tensors by name."""
        new = {f"{NEW}{name}": value.clone() for name, value in self.new.items()}
        return {EPOCH: torch.tensor(self._epoch), **{name: value.clone() for name, value in self.memory.items()}, **new}

    def load_learned(self, learned: Mapping[str, Tensor]) -> None:
        """Continue with a memory that `learned` returned, in its epoch.

        Raises:
            InputError: it is the memory of another sampler, or of other data.
        """
        present = self.learned()
        layouts = [{name: (value.shape, value.dtype) for name, value in part.items()} for part in (learned, present)]
        if layouts[0] != layouts[1]:
            raise InputError(
                f"The memory is not of this {type(self).__name__}, or of other data. Resume with the sampler and the data of "
                "the stopped run."
            )
        self.memory = {name: learned[name].clone() for name in self.memory}
        self.new = {name: learned[f"{NEW}{name}"].clone() for name in self.new}
        self._epoch = int(learned[EPOCH])


def observer_of(sampler: NegativeSampler) -> Callable[[Step, Tensor], None] | None:
    """Return the ``observe`` of a sampler, for `NegativesClipLoss.observer`; None if it does not observe the training.

    Raises:
        PluginError: ``observe`` has other parameters. In a step: it stops with an exception, or changes the memory of the
            epoch.
    """
    if not isinstance(sampler, ObservingSampler):
        return None
    parameters = inspect.signature(sampler.observe)
    try:
        parameters.bind("step", "losses")
    except TypeError:
        needed = f"observe of the sampler {name_of(sampler)} must take (step, losses)"
        raise PluginError(f"{needed}, not {parameters}. Repair the plugin.") from None
    return functools.partial(_observe, sampler)


def _observe(sampler: ObservingSampler, step: Step, losses: Tensor) -> None:
    before = _memory_versions(sampler)
    with reported(f"observe of the sampler {name_of(sampler)}"):
        sampler.observe(step, losses)
    if _memory_versions(sampler) != before:
        raise PluginError(
            f"observe of the sampler {name_of(sampler)} changes self.memory. Write to self.new, which becomes the memory of "
            "the next epoch."
        )


def _memory_versions(sampler: ObservingSampler) -> list[tuple[str, int, int]]:
    owner = getattr(sampler.observe, "__self__", None)  # of a sampler that is wrapped, too
    memory = owner.memory if isinstance(owner, LearningSampler) else {}
    return [(name, id(value), value._version) for name, value in memory.items()]


def carry_over(previous: NegativeSampler, sampler: NegativeSampler) -> None:
    """Give a sampler of new clusters what the previous one has learned; if it does not fit them, say that it is lost."""
    if not isinstance(previous, ObservingSampler) or type(previous) is not type(sampler):
        return
    learner: Any = sampler
    try:
        learner.load_learned(previous.learned())
    except InputError:
        log(f"the sampler {type(sampler).__name__} learns anew: what it has learned does not fit the new clusters")
