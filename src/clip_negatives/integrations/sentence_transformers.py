"""sentence-transformers: a replacement of `MultipleNegativesRankingLoss`, and the batches of a negative sampler.

The first column of the data set is used as CLIP's images, the second as CLIP's texts. A third column holds the sample ids: the
trainer puts them into the batch as labels and passes them to the loss, so prefetching cannot mix them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import RandomSampler, SequentialSampler

from clip_negatives.batches.checked import checked_batches
from clip_negatives.batches.extras import Captions, refuse_additions
from clip_negatives.errors import DataError, InputError, MissingPackageError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.host.method import Method
from clip_negatives.interfaces import NegativeSampler, SamplingContext
from clip_negatives.losses.added import Added
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives.storage.clusters_folder import ClustersFolder, read_clusters
from clip_negatives.training.method_state import MethodState
from clip_negatives.training.same_data import check_count, check_same_samples
from clip_negatives.training.weighting import loss_terms

try:
    from datasets import Dataset, Value
    from sentence_transformers import DefaultBatchSampler
    from sentence_transformers.util import cos_sim
except ImportError as error:
    raise MissingPackageError.of("sentence-transformers", error) from error

LABELS = ("label", "labels", "score", "scores")  # columns that the trainer passes to the loss as labels
IDS = LABELS[0]  # the column with the ids
ONE_WAY, BOTH_WAYS = ("query_to_doc",), ("query_to_doc", "doc_to_query")  # supported directions


def with_index(dataset: Dataset, clusters: str | Path, keys: Sequence[str] | None = None) -> Dataset:
    """Return the data set with a column of sample ids for the loss.

    Call it on the data set in the order that was clustered: row i is sample i. Shuffle afterwards.

    Args:
        dataset: the data set.
        clusters: clusters folder of the data set.
        keys: key, caption or image path of each row; None compares the columns of strings, one of which must equal a column of
            the clusters folder.

    Raises:
        InputError: the data set already has a column of labels, or another number of samples.
        ArtifactError: the clusters folder cannot be read, or belongs to other data or another order.
    """
    labels = [name for name in dataset.column_names if name in LABELS]
    if labels:
        raise InputError(f"The data set has the column {labels[0]}, but the labels must be sample ids. Remove this column.")
    folder = read_clusters(clusters)
    check_count(folder.clusters.n_samples, len(dataset), folder.path)
    check_same_samples(folder, dataset, keys, strict=True)
    return dataset.add_column(IDS, list(range(len(dataset))), feature=Value("int64", id=_fingerprint(folder)))


def _fingerprint(folder: ClustersFolder) -> str:
    """Return the text that is stored with the id column; it shows whether ids fit the clusters."""
    return f"clip-negatives {folder.digest}"


@dataclass(frozen=True)
class NegativesBatches:
    """Batch sampler for ``SentenceTransformerTrainingArguments(batch_sampler=NegativesBatches(...))``.

    Evaluation data, which has no column of `with_index`, keeps its order.

    Attributes:
        clusters: clusters folder of the training data.
        sampler: ``name`` or ``name:key=value,...`` of the negative sampler.
        gather_across_devices: as in the loss; if True, the sampler composes the batches of all processes together.
    """

    clusters: str | Path
    sampler: str = Method.sampler
    gather_across_devices: bool = False

    def __call__(
        self, dataset: Dataset, batch_size: int, drop_last: bool, generator: Any = None, seed: int = 0, **named: Any
    ) -> DefaultBatchSampler:
        """Return the batches of a data set; the trainer calls this."""
        folder = read_clusters(self.clusters)
        item, _ = registry.default_registry().resolve("negative_sampler", self.sampler)
        has_ids = IDS in dataset.column_names
        if has_ids and getattr(dataset.features[IDS], "id", None) != _fingerprint(folder):
            raise InputError(
                f"The column {IDS!r} has ids for other clusters than {folder.path}. Use with_index(dataset, clusters) again."
            )
        if not has_ids and len(dataset) == folder.clusters.n_samples:
            raise DataError(
                f"The data has no column {IDS!r} (columns: {dataset.column_names}). Use with_index(dataset, clusters)."
            )
        if not has_ids or item.keeps_native_order:
            order = RandomSampler(dataset, generator=generator) if has_ids else SequentialSampler(dataset)
            return DefaultBatchSampler(order, batch_size, drop_last, generator=generator, seed=seed, **named)
        check_count(folder.clusters.n_samples, len(dataset), folder.path)
        n_batches = dist.get_world_size() if self.gather_across_devices and dist.is_initialized() else 1
        context = SamplingContext.of(folder.clusters, batch_size * n_batches, seed=seed, captions=Captions(folder.samples))
        sampler = registry.create("negative_sampler", self.sampler, context)
        refuse_additions(sampler, "sentence-transformers")
        rows = {index: row for row, index in enumerate(dataset.with_format(None)[IDS])}
        if set(rows) != set(range(len(dataset))):
            raise InputError(f"The column {IDS!r} must have every sample id once. Use with_index on the clustered data set.")
        return _BatchesOfSteps(sampler, batch_size, n_batches, [rows[index] for index in range(len(rows))])


class _BatchesOfSteps(DefaultBatchSampler):
    """Batches of all processes, step by step: each step is split into `n_batches`; accelerate assigns them to processes."""

    def __init__(self, steps: NegativeSampler, batch_size: int, n_batches: int, rows: Sequence[int]) -> None:
        super().__init__(range(len(steps)), batch_size=batch_size, drop_last=True)
        self.steps, self.n_batches = steps, n_batches
        self.rows = rows  # of the data set, by sample id

    def __len__(self) -> int:
        return len(self.steps) * self.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in checked_batches(self.steps, len(self.rows)):
            step = [self.rows[index] for index in step]
            yield from (step[start : start + self.batch_size] for start in range(0, len(step), self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.steps.set_epoch(epoch)


class NegativesRankingLoss(nn.Module):
    """`sentence_transformers.losses.MultipleNegativesRankingLoss` with weights on the in-batch negatives.

    With the weighting ``uniform``, both losses are equal. Further columns are hard negatives for all queries, with weight 1.
    Without gradients, as in evaluation, all weights are 1.

    Args:
        model: the model to train.
        scale: factor of the cosines.
        similarity_fct: must be cosine similarity.
        gather_across_devices: use the samples of all processes as negatives.
        directions: ``("query_to_doc",)``, or both ``"query_to_doc"`` and ``"doc_to_query"`` for the mean of both directions.
        partition_mode: "joint" or, for both directions, "per_direction".
        clusters: clusters folder of the training data.
        weighting: ``name`` or ``name:key=value,...`` of the loss weighting.
        backend: see `clip_negatives.losses.functional.weighted_info_nce`.

    Raises:
        UnsupportedError: the similarity or the directions are not supported, or the weighting has a state: checkpoints of the
            trainer cannot store it.
        ClipNegativesError: the folder cannot be read, or the weighting is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        gather_across_devices: bool = False,
        directions: tuple[str, ...] = ONE_WAY,
        partition_mode: str = "joint",
        *,
        clusters: str | Path,
        weighting: str = Method.weighting,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if similarity_fct is not cos_sim:
            raise UnsupportedError(f"similarity_fct must be cos_sim, got {similarity_fct}. Leave it out.")
        supported = {("joint", ONE_WAY), ("per_direction", ONE_WAY), ("per_direction", BOTH_WAYS)}
        if (partition_mode, tuple(sorted(directions, reverse=True))) not in supported:
            raise UnsupportedError(
                f"directions must be {ONE_WAY}, or {BOTH_WAYS} with partition_mode='per_direction', got {directions} with "
                f"{partition_mode!r}. For other directions, use MultipleNegativesRankingLoss."
            )
        self.model, self.scale, self.gather_across_devices = model, scale, gather_across_devices
        self.directions, self.partition_mode, self.weighting = tuple(directions), partition_mode, weighting
        text_anchors = len(directions) == 2
        loss = partial(NegativesClipLoss, local_loss=True, gather_with_grad=True, text_anchors=text_anchors, backend=backend)
        self.weighted = loss(terms=loss_terms(weighting, read_clusters(clusters).clusters, teacher=False))
        self._checked_ids = False
        if self.weighted.terms.scheduled:
            raise UnsupportedError(
                f"The loss does not know the progress of the trainer, which the weighting {weighting} needs. Use one whose "
                "weights do not change during the training."
            )
        if MethodState(self.weighted.anchor_loss).tensors():
            raise UnsupportedError(f"The trainer cannot save the state of the weighting {weighting}. Use another weighting.")

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch; `labels` are its sample ids, int64, shape (B,), from the column of `with_index`."""
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        queries, positives, *negatives = (F.normalize(column, dim=-1) for column in columns)
        training = self.training and torch.is_grad_enabled()
        samples = BatchSamples(ids=self._ids(labels, len(queries))) if training else None
        loss = self.weighted
        if negatives and loss.anchor_loss is not None:
            raise UnsupportedError(
                f"The weighting {self.weighting} needs all logits of a batch and does not work with {len(negatives)} columns "
                "of hard negatives. Remove these columns, or use weighted_infonce."
            )
        loss.added = Added(texts=len(negatives))
        if self.gather_across_devices and dist.is_initialized():
            loss.rank, loss.world_size = dist.get_rank(), dist.get_world_size()
        documents = torch.stack([positives, *negatives], dim=1).flatten(0, 1)
        value: Tensor = loss(queries, documents, self.scale, samples=samples)
        return value

    def _ids(self, labels: Tensor | None, n: int) -> Tensor:
        """Check that the labels are sample ids, and return them; values are checked once only, because this waits for a GPU."""
        known = self.weighted.terms.n_samples
        valid = labels is not None and labels.shape == (n,) and labels.dtype == torch.int64
        if valid and labels is not None and not self._checked_ids:
            valid = len(labels.unique()) == n and int(labels.min()) >= 0 and (known is None or int(labels.max()) < known)
        if labels is None or not valid:
            values = "no labels" if labels is None else f"{labels.tolist()[:8]} ..."
            raise InputError(
                f"The labels of a batch must be its sample ids, got {values}. Train on with_index(dataset, clusters)."
            )
        self._checked_ids = True
        return labels

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options that the trainer writes into the model card."""
        names = ("scale", "gather_across_devices", "directions", "partition_mode", "weighting")
        return {name: getattr(self, name) for name in names}
