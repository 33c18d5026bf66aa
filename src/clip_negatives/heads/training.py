"""Train linear heads on the frozen features of clusters, with any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from clip_negatives.batches.extras import Additions, Item, with_additions
from clip_negatives.errors import InputError
from clip_negatives.heads.linear import LinearHeads
from clip_negatives.host.method import Method
from clip_negatives.interfaces import Clusters, SamplingContext
from clip_negatives.learning_sampler import carry_over, observer_of
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples

WARMUP = 0.1  # share of the steps in which the learning rate rises

Refresh = Callable[[LinearHeads, int], Clusters | None]  # called with the heads and the epoch, before each epoch but the first
OnStep = Callable[[int, LinearHeads], None]  # called with the number of finished steps: 0 before the first step


@dataclass(frozen=True)  # no slots, so that `HeadSettings.steps` is the default value
class HeadSettings:
    """Settings of a training of heads: AdamW with a one-cycle learning rate.

    Attributes:
        lr: highest learning rate.
        steps: number of steps.
        batch_size: samples of a batch, or all samples if they are fewer.
        dim: length of an embedding.
        weight_decay: weight decay of the matrices.
        dropout: see `LinearHeads`.
    """

    lr: float = 3e-3
    steps: int = 250
    batch_size: int = 512
    dim: int = 128
    weight_decay: float = 0.1
    dropout: float = 0.0


def train_heads(
    clusters: Clusters,
    method: Method,
    settings: HeadSettings | None = None,
    *,
    seed: int = 0,
    captions: Sequence[str] | None = None,
    refresh: Refresh | None = None,
    on_step: OnStep | None = None,
) -> LinearHeads:
    """Train linear heads on the frozen features of clusters, on the CPU.

    Each step takes a batch of the method's sampler, and the loss of the method's weighting, as a training of towers does.
    Memory is O(batch_size^2), besides the features.

    Args:
        clusters: the training samples, with features.
        method: sampler, weighting and temperature.
        settings: learning rate, steps and sizes; None is `HeadSettings()`.
        seed: seed of the initial weights and of the batches.
        captions: texts of the samples, needed by samplers that add captions.
        refresh: returns new clusters of the same samples, or None to keep the old ones.
        on_step: see `OnStep`.

    Returns:
        The heads, in evaluation mode.

    Raises:
        InputError: the clusters have no features, or the method does not fit them.
        PluginError: a plugin or an option of the method is unknown.
    """
    settings = settings or HeadSettings()
    training = _Training(clusters, method, settings, seed, captions)
    training.run(refresh, on_step or (lambda step, heads: None))
    return training.heads.eval()


class _Training:
    def __init__(
        self, clusters: Clusters, method: Method, settings: HeadSettings, seed: int, captions: Sequence[str] | None
    ) -> None:
        self.settings, self.seed, self.method, self.captions = settings, seed, method, captions
        self.clusters, self.sampler = clusters, self._sampler(clusters)
        self.images, self.texts = (_Features(clusters.features_of(name, "A linear head")) for name in ("image", "text"))
        self.weighting = method.create_weighting()
        additions = Additions.of(self.sampler)
        self.loss = NegativesClipLoss(terms=self.weighting(clusters), **additions.loss_options())
        self.loss.observer = observer_of(self.sampler)
        self.rows = _Rows(captions or ()) if additions else None
        self.heads = LinearHeads(
            (self.images.size, self.texts.size),
            settings.dim,
            seed=seed,
            temperature=method.temperature,
            sigmoid=getattr(self.weighting, "requires_logit_bias", False),
            dropout=settings.dropout,
        )

    def run(self, refresh: Refresh | None, on_step: OnStep) -> None:
        heads, settings = self.heads, self.settings
        groups = [*heads.parameter_groups(settings.weight_decay), {"params": list(self.loss.parameters()), "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps, pct_start=WARMUP)
        on_step(0, heads)
        for step, (epoch, batch) in enumerate(self._batches(refresh), start=1):
            optimizer.zero_grad()
            self._loss(batch, step - 1, epoch).backward()
            optimizer.step()
            schedule.step()
            heads.limit_scale()
            on_step(step, heads)

    def _loss(self, batch: list[int], step: int, epoch: int) -> Tensor:
        images = texts = ids = torch.tensor(batch)
        text_ids = None
        if self.rows is not None:
            images, text_ids = self.rows(with_additions(self.sampler, batch, len(self.images)))
            texts = text_ids[:, : 1 + self.loss.added.texts].flatten()
        x, y = self.heads(self.images.take(images), self.texts.take(texts))
        samples = BatchSamples(ids=ids, text_ids=text_ids).at(step, self.settings.steps, epoch=epoch)
        return cast("Tensor", self.loss(x, y, self.heads.log_scale.exp(), self.heads.bias, samples=samples))

    def _batches(self, refresh: Refresh | None) -> Iterator[tuple[int, list[int]]]:
        """Yield the epoch and the batch of each step."""
        epoch = done = 0
        while True:
            if epoch and refresh is not None and (clusters := refresh(self.heads, epoch)) is not None:
                previous, self.sampler = self.sampler, self._sampler(clusters)
                carry_over(previous, self.sampler)
                self.loss.observer = observer_of(self.sampler)
                self.loss.set_terms(self.weighting(clusters))
            self.sampler.set_epoch(epoch)
            for batch in self.sampler:
                if done == self.settings.steps:
                    return
                done += 1
                yield epoch, batch
            epoch += 1

    def _sampler(self, clusters: Clusters) -> Any:
        size = min(self.settings.batch_size, clusters.n_samples)
        context = SamplingContext.of(clusters, size, seed=self.seed, captions=self.captions)
        return self.method.create_sampler(context)


class _Features:
    """Features of one modality; every step takes its rows into the same memory, which saves the time to allocate it."""

    def __init__(self, features: Tensor) -> None:
        self.features, self._taken = features, features.new_empty(0)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def size(self) -> int:
        """Return the length of a feature."""
        return self.features.shape[1]

    def take(self, rows: Tensor) -> Tensor:
        """Return the features of some rows, float32; the next call overwrites them."""
        return torch.index_select(self.features, 0, rows, out=self._taken.resize_(0)).float()


class _Rows:
    """Rows of the images and texts of a batch, with those that a sampler adds: samples of the data, with frozen features."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.captions = captions
        self.rows = {text: row for row, text in enumerate(captions)}

    def __call__(self, batch: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Return the rows of all images, shape (B (1 + F),), and of the texts, shape (B, 1 + E + F): own, added, of images."""
        images = [index for item in batch for index in (item.sample, *(other for other, _ in item.images))]
        texts = [[self._own(item.sample, item.caption), *item.texts, *self._of_images(item)] for item in batch]
        if unknown := next((text for line in texts for text in line if text not in self.rows), None):
            raise InputError(f"The sampler adds the caption {unknown!r}, which is not in the data, so it has no features.")
        return torch.tensor(images), torch.tensor([[self.rows[text] for text in line] for line in texts])

    def _of_images(self, item: Item) -> list[str]:
        return [self._own(*image) for image in item.images]

    def _own(self, index: int, caption: str | None) -> str:
        return self.captions[index] if caption is None else caption
