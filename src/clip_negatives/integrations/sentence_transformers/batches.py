"""The batches of a negative sampler, and the column that says which sample is which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import DefaultBatchSampler
from torch import distributed as dist
from torch.utils.data import RandomSampler, SequentialSampler

from clip_negatives import registry
from clip_negatives.artifacts import read_clusters
from clip_negatives.errors import DataError, InputError
from clip_negatives.extra_texts import Captions, refuse_texts
from clip_negatives.interfaces import NegativeSampler, SamplingContext

INDEX = "label"
"""Column with the index of a sample: of the names that the trainer hands to the loss, the first."""

LABELS = ("label", "labels", "score", "scores")
"""Names of columns that the trainer takes for labels."""


def with_index(dataset: Dataset) -> Dataset:
    """Return the data set with a column that tells the loss which sample is which.

    To be called on the data as they were clustered, row i being sample i; what is shuffled or selected afterwards keeps it.

    Raises:
        InputError: there is a column with labels, which would be in its way.
    """
    taken = [name for name in dataset.column_names if name in LABELS]
    if taken:
        raise InputError(
            f"Expected a data set without labels, whose place the index takes, got the column {taken[0]!r}. Drop it."
        )
    return dataset.add_column(INDEX, list(range(len(dataset))))


@dataclass(frozen=True)
class NegativesBatches:
    """Make the batch sampler of a training: ``SentenceTransformerTrainingArguments(batch_sampler=NegativesBatches(...))``.

    Evaluation data, which `with_index` has not seen, keep their own order.

    Attributes:
        clusters: clusters folder of the training data.
        sampler: ``name`` or ``name:key=value,...`` of the negative sampler.
        gather_across_devices: as in the loss: compose what all processes contrast in a step, and not what each does.
    """

    clusters: str | Path
    sampler: str = "cluster_similarity"
    gather_across_devices: bool = False

    def __call__(
        self, dataset: Dataset, batch_size: int, drop_last: bool, generator: Any = None, seed: int = 0, **named: Any
    ) -> DefaultBatchSampler:
        """Return the batches of a data set; the trainer calls this.

        Raises:
            ClipNegativesError: the clusters are of other data, or the sampler refuses.
        """
        folder = read_clusters(self.clusters)
        item, _ = registry.default_registry().resolve("negative_sampler", self.sampler)
        trained_on = INDEX in dataset.column_names
        if not trained_on and len(dataset) == folder.clusters.n_samples:
            raise DataError(
                f"Expected data with the column {INDEX!r} that with_index adds, got {dataset.column_names}. Call it."
            )
        if not trained_on or item.keeps_native_order:
            order = RandomSampler(dataset, generator=generator) if trained_on else SequentialSampler(dataset)
            return DefaultBatchSampler(
                order, batch_size=batch_size, drop_last=drop_last, generator=generator, seed=seed, **named
            )
        dealt = dist.get_world_size() if self.gather_across_devices and dist.is_initialized() else 1
        context = SamplingContext(
            len(dataset), batch_size * dealt, seed=seed, clusters=folder.clusters, captions=Captions(folder.samples)
        )
        made = registry.create("negative_sampler", self.sampler, context)
        refuse_texts(made, "sentence-transformers")
        return DealtBatches(made, batch_size, dealt)


class DealtBatches(DefaultBatchSampler):
    """Yield the parts of each step, for accelerate, which deals one batch after the other out to the processes.

    Args:
        steps: yields the indices of a step of all processes.
        batch_size: of one process.
        each: batches of a step.
    """

    def __init__(self, steps: NegativeSampler, batch_size: int, each: int) -> None:
        super().__init__(range(len(steps)), batch_size=batch_size, drop_last=True)
        self.steps = steps
        self.each = each

    def __len__(self) -> int:
        """Return the batches of an epoch, of all processes."""
        return len(self.steps) * self.each

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch."""
        for step in self.steps:
            yield from (step[start : start + self.batch_size] for start in range(0, len(step), self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        super().set_epoch(epoch)
        self.steps.set_epoch(epoch)
