"""A training of two linear towers on random pairs, with the batches of a sampler."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_negatives import BatchSamples, NegativesClipLoss
from clip_negatives.learning_sampler import observer_of
from clip_negatives.sampling import PlannedSampler, epoch_generator


class TinyTraining:
    """A training whose batches and losses are kept.

    Args:
        sampler: composes the batches.
        **options: arguments of the loss.

    Attributes:
        seen: all batches.
        losses: loss of each batch.
    """

    def __init__(self, sampler: PlannedSampler, **options: Any) -> None:
        n, generator = sampler.context.n_samples, epoch_generator(0, 0)
        self.sampler = sampler
        self.inputs = torch.randn(n, 6, generator=generator), torch.randn(n, 5, generator=generator)
        self.inputs[1][:, :3] = self.inputs[0][:, :3]
        weights = (torch.randn(len(rows[0]), 4, generator=generator) / 3 for rows in self.inputs)
        self.towers = nn.ParameterList([nn.Parameter(weight) for weight in weights])
        self.optimizer = torch.optim.SGD(self.towers.parameters(), lr=0.5)
        self.loss = NegativesClipLoss(**options)
        self.loss.observer = observer_of(sampler)
        self.seen: list[list[int]] = []
        self.losses: list[float] = []

    def features(self, ids: Tensor) -> list[Tensor]:
        """Return image and text features."""
        return [F.normalize(rows[ids] @ tower, dim=1) for tower, rows in zip(self.towers, self.inputs, strict=True)]

    def train(self, epoch: int, n_batches: int | None = None) -> None:
        """Train an epoch, or the rest of it if the sampler was resumed, or `n_batches` of it."""
        self.sampler.set_epoch(epoch)
        for batch in itertools.islice(self.sampler, n_batches):
            ids = torch.tensor(batch)
            samples = BatchSamples(ids=ids).at(len(self.seen), epoch=epoch)
            loss: Tensor = self.loss(*self.features(ids), torch.tensor(10.0), samples=samples)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
            self.seen.append(batch)


def resumed(stopped: TinyTraining, sampler: PlannedSampler) -> TinyTraining:
    """Return a training that goes on where `stopped` was stopped, with a new sampler."""
    training = TinyTraining(sampler)
    training.towers.load_state_dict(stopped.towers.state_dict())
    sampler.load_state_dict(stopped.sampler.state_dict())
    if hasattr(sampler, "load_learned"):
        sampler.load_learned(stopped.sampler.learned())
    return training


def check_resumes(whole: TinyTraining, stopped: TinyTraining, sampler: PlannedSampler, n_batches: int) -> None:
    """Check that a training stopped after `n_batches` of epoch 1 goes on with the same batches and losses."""
    for epoch in (0, 1, 2):
        whole.train(epoch)
    stopped.train(0)
    stopped.train(1, n_batches)
    rest = resumed(stopped, sampler)
    for epoch in (1, 2):
        rest.train(epoch)
    assert len(stopped.seen) == len(sampler) + n_batches
    assert stopped.seen + rest.seen == whole.seen
    assert stopped.losses + rest.losses == whole.losses
    assert sum(whole.losses[-10:]) < sum(whole.losses[:10])
