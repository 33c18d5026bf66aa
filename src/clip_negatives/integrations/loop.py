"""Any training loop over a `DataLoader`: wrap the loader, get the loss that goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from clip_negatives import registry
from clip_negatives.artifacts import ClustersFolder, read_clusters
from clip_negatives.backends import check_backend
from clip_negatives.errors import DataError, InputError
from clip_negatives.extra_texts import Captions, Tokenize, texts_per_image
from clip_negatives.integrations.weighting import loss_terms
from clip_negatives.interfaces import SamplingContext
from clip_negatives.loader import BatchIndex, IndexedLoader
from clip_negatives.loss import NegativesClipLoss


def attach(
    loader: DataLoader[Any],
    clusters: str | Path,
    *,
    sampler: str = "cluster_similarity",
    weighting: str = "weighted_infonce",
    seed: int = 0,
    backend: str = "auto",
    local_loss: bool = False,
    gather_with_grad: bool = False,
    accumulate: int = 1,
    tokenize: Tokenize | None = None,
    index_in_batch: bool = False,
) -> tuple[IndexedLoader, NegativesClipLoss]:
    """Return a loader and a loss that put our negatives into a training loop written for open_clip.

    The loader yields what it yielded before, in other batches; the loss is called as `open_clip.ClipLoss` is and finds the
    index of the batch by itself. Inside a process group both know their rank.

    Args:
        loader: the loop's own; its data set is asked for samples by index, in the order that was clustered.
        clusters: clusters folder of that data set, made by ``clip-negatives prepare``.
        sampler: ``name`` or ``name:key=value,...``.
        weighting: the same.
        seed: seed of the batches; the same on every rank.
        backend: see `clip_negatives.functional.weighted_info_nce`.
        local_loss: as in `open_clip.ClipLoss`.
        gather_with_grad: as in `open_clip.ClipLoss`.
        accumulate: micro-batches whose features are concatenated before the loss is called.
        tokenize: turns n texts into what the model takes, shape (n, tokens), as the data set does; needed for a sampler that
            adds texts. Samples are then ``(image, tokens)``, and each text of a batch has those that come with it behind it.
        index_in_batch: the loader yields ``(batch, index)``, and the loss is called with ``index=index``; for a loop that
            fetches batches ahead, or hands them to something that does.

    Raises:
        ArtifactError: the folder is not a clusters folder, or is damaged.
        PluginError: a name or an option is unknown, or a value has the wrong type.
        InputError: the clusters are of another number of samples, the loader has no batch size, a tokenizer is missing, or the
            weighting removes all incorrect pairs.
        UnsupportedError: the sampler adds texts, and the weighting or `index_in_batch` cannot do with them.
        DataError: the loader reads a stream, or a batch is larger than the data.
    """
    check_backend(backend, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    folder = read_clusters(clusters)
    context = sampling_context(loader, folder, seed)
    made = registry.create("negative_sampler", sampler, context)
    batch_index = BatchIndex(accumulate)
    loss = NegativesClipLoss(
        local_loss=local_loss,
        gather_with_grad=gather_with_grad,
        rank=context.rank,
        world_size=context.world_size,
        terms=loss_terms(weighting, folder.clusters),
        batch_index=None if index_in_batch else batch_index,
        extra_texts=texts_per_image(made),
        text_ids=batch_index.text_ids,
        backend=backend,
    )
    return IndexedLoader(loader, made, batch_index, tokenize, index_in_batch=index_in_batch), loss


def sampling_context(loader: DataLoader[Any], folder: ClustersFolder, seed: int) -> SamplingContext:
    """Return what a sampler is told of a loop over `loader`, in this process.

    Raises:
        DataError: the loader reads a stream.
        InputError: the loader has no batch size, or the clusters are of another number of samples.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(
            "Expected a loader over samples that can be asked for by index, got a stream. Train on it with clip-negatives "
            "train --sampler in_batch, or load it as a data set with an index."
        )
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if not isinstance(size, int):
        raise InputError("Expected a loader with a batch size, or a batch sampler that has one, got neither. Give batch_size=.")
    n = len(loader.dataset)  # type: ignore[arg-type]
    if folder.clusters.n_samples != n:
        raise InputError(
            f"Expected clusters of the {n} samples of the loader, got {folder.path} of {folder.clusters.n_samples}. Prepare "
            "them from the data that is trained on."
        )
    grouped = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
    return SamplingContext(
        n_samples=n,
        batch_size=size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        clusters=folder.clusters,
        native_batches=loader.batch_sampler,
        captions=Captions(folder.samples),
    )
