"""Samplers that plan an epoch in blocks: the first batch does not wait for the plan of the whole epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import PlannedSampler, epoch_generator, permutation

MIN_BLOCK_SAMPLES = 2**18
"""Smallest number of samples of a block."""

MIN_BLOCK_STEPS = 64
"""Smallest number of steps of a block; it decides if a step has more than 4096 samples."""

FEISTEL_ROUNDS = 8
"""Rounds of the Feistel network of a `Shuffle`."""


class Shuffle:
    """A random order of 0 .. n-1, of which any part can be computed alone.

    The order is a Feistel network with tables of random numbers (Luby and Rackoff, 1988) over ``side x side >= n`` places. A
    place that gets n or more goes through the network again (cycle walking: Black and Rogaway, 2002). Memory: O(sqrt(n)).

    Args:
        n: number of samples, at least 1.
        generator: source of the tables.

    Examples:
        >>> shuffle = Shuffle(10, torch.Generator().manual_seed(0))
        >>> sorted(shuffle.part(0, 4).tolist() + shuffle.part(4, 10).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n = n
        self.side = math.isqrt(n - 1) + 1
        self.tables = torch.randint(self.side, (FEISTEL_ROUNDS, self.side), generator=generator)

    def part(self, start: int, stop: int) -> Tensor:
        """Return the samples in the places ``start .. stop - 1``, int32 if that is wide enough."""
        samples = self._moved(torch.arange(start, stop))
        while (outside := (samples >= self.n).nonzero().flatten()).numel():
            samples[outside] = self._moved(samples[outside])
        return samples.int() if self.n <= 2**31 - 1 else samples

    def _moved(self, places: Tensor) -> Tensor:
        left, right = places // self.side, places % self.side
        for table in self.tables:
            left, right = right, (left + table[right]) % self.side
        return left * self.side + right


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive steps of an epoch, and the places of their samples in the shuffled data.

    Attributes:
        first_step: number of the first step.
        n_steps: number of steps.
        start: first place.
        stop: place after the last sample. The last block also has the remaining samples that do not fill a step.
        shuffle: order of the data; None if the block is the whole epoch.
    """

    first_step: int
    n_steps: int
    start: int
    stop: int
    shuffle: Shuffle | None = None

    def samples(self, generator: torch.Generator) -> Tensor:
        """Return the samples of the block in random order, int32 if that is wide enough, shape (stop - start,)."""
        return permutation(self.stop, generator) if self.shuffle is None else self.shuffle.part(self.start, self.stop)


BlockPlan = Callable[[torch.Generator, Block], Tensor]
"""``plan(generator, block)``: returns the sample ids of every step of a block, shape (block.n_steps, world_size * B). They are
``block.samples(generator)``, each at most once."""


class BlockSampler(PlannedSampler):
    """A `PlannedSampler` that plans an epoch in blocks of random samples, each when its first step is due.

    A block has at least `MIN_BLOCK_SAMPLES` samples and `MIN_BLOCK_STEPS` steps, and about twice that at most. Data below two
    blocks are planned as one. The blocks depend only on seed and epoch, so a resumed epoch plans only the blocks that it still
    needs.

    Args:
        context: data, batch size, processes and seed of the training run.
        plan: ``plan(generator, block)``, see `BlockPlan`.

    Attributes:
        n_blocks: number of blocks of an epoch.

    Raises:
        DataError: one step needs more samples than the data have.
        InputError: the batch size is below 1 or the seed below 0.

    Examples:
        >>> def plan(generator, block):
        ...     return block.samples(generator).view(block.n_steps, -1)
        >>> sampler = BlockSampler(SamplingContext(n_samples=2**20, batch_size=2**10), plan)
        >>> len(sampler), sampler.n_blocks, len(next(iter(sampler)))
        (1024, 4, 1024)
    """

    def __init__(self, context: SamplingContext, plan: BlockPlan) -> None:
        super().__init__(context, plan)  # type: ignore[arg-type]
        self.n_blocks = max(1, context.steps // max(MIN_BLOCK_STEPS, math.ceil(MIN_BLOCK_SAMPLES / self.step_size)))

    def batches_after(self, n: int) -> Iterator[list[int]]:
        """Return the batches of the epoch for this rank, without the first `n`; only their blocks are planned."""
        return self._batches_after(n)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of its batches that were yielded, and the number of blocks if there are several."""
        return super().state_dict() | ({"blocks": self.n_blocks} if self.n_blocks > 1 else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at the next batch that was not yielded.

        Raises:
            InputError: the state belongs to a sampler of another length, is invalid, or is within an epoch of other blocks.
        """
        blocks = state.get("blocks", 1)
        if blocks != self.n_blocks and state.get("position") not in (0, len(self)):
            raise InputError(
                f"The state was saved within an epoch of {blocks} blocks, but the epoch now has {self.n_blocks} blocks, so the "
                f"batches would differ. Got {state!r}. Resume with the same data, batch size, number of processes and version "
                "of clip-negatives, or start at the beginning of an epoch."
            )
        super().load_state_dict(state)

    def _steps_after(self, n: int) -> Iterator[Tensor]:
        for generator, block in self._blocks(epoch_generator(self.context.seed, self._epoch)):
            start, stop = max(n, block.first_step), block.first_step + block.n_steps
            if start < stop:
                plan = self._checked_shape(self._plan_of(generator, block), block.n_steps)
                for step in range(start, stop):
                    yield plan[step - block.first_step]

    def _planned(self, generator: torch.Generator, epoch: int) -> Tensor:
        return torch.cat([self._plan_of(*block) for block in self._blocks(generator)])

    def _plan_of(self, generator: torch.Generator, block: Block) -> Tensor:
        plan: Any = self.plan
        steps: Tensor = plan(generator, block)
        return steps

    def _blocks(self, generator: torch.Generator) -> Iterator[tuple[torch.Generator, Block]]:
        """Yield the blocks of an epoch, each with a generator of its own."""
        n, steps = self.context.n_samples, self.context.steps
        if self.n_blocks == 1:
            yield generator, Block(0, steps, 0, n)
            return
        shuffle = Shuffle(n, generator)
        seeds = torch.randint(2**63 - 1, (self.n_blocks,), generator=generator).tolist()
        for number, seed in enumerate(seeds):
            first, stop = (steps * (number + more) // self.n_blocks for more in (0, 1))
            last_place = n if stop == steps else stop * self.step_size
            block = Block(first, stop - first, first * self.step_size, last_place, shuffle)
            yield torch.Generator().manual_seed(seed), block
