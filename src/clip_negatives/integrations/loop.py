"""Your own training loop over a `DataLoader`: a wrapped loader and its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import distributed as dist
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from clip_negatives.batches.extras import Additions, Captions, Tokenize
from clip_negatives.batches.extras_dataset import ExtrasDataset
from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.batches.native_order import NativeOrder
from clip_negatives.batches.samples import IndexedDataset
from clip_negatives.distributed.environment import started_processes
from clip_negatives.errors import DataError, InputError
from clip_negatives.host import registry
from clip_negatives.host.method import Method
from clip_negatives.interfaces import SamplingContext
from clip_negatives.learning_sampler import observer_of
from clip_negatives.losses.backends import check_backend
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.printing import warn
from clip_negatives.storage.clusters_folder import ClustersFolder, read_clusters
from clip_negatives.storage.provenance import resolved
from clip_negatives.training.same_data import IDENTITIES, check_count, check_same_samples
from clip_negatives.training.weighting import loss_terms

ORDERS = (RandomSampler, SequentialSampler, DistributedSampler)  # orders of a loader that a negative sampler may replace


def attach(
    loader: DataLoader[Any],
    clusters: str | Path,
    *,
    sampler: str = Method.sampler,
    weighting: str = Method.weighting,
    seed: int = 0,
    backend: str = "auto",
    local_loss: bool = False,
    gather_with_grad: bool = False,
    tokenize: Tokenize | None = None,
    keys: Sequence[str] | None = None,
    key_of: Callable[[Any], str] | None = None,
    epochs: int | None = None,
) -> tuple[IndexedLoader, NegativesClipLoss]:
    """Return a loader and a loss that add a negative sampler and a loss weighting to your training loop.

    The loader yields ``(batch, samples)``: the same kind of batches as before, composed by the sampler, with the identity of
    their samples. Call the loss as you call `open_clip.ClipLoss`, and pass it the samples of the features:

        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for (images, texts), samples in loader:
                loss(encode_image(images), encode_text(texts), logit_scale.exp(), samples=samples).backward()

    For features of several batches, pass ``BatchSamples.concatenate([...])``, and ``again=True`` to every further call with the
    same samples. Inside a process group, loader and loss know their rank. In evaluation mode, and without gradients, the loss
    is plain InfoNCE and needs no samples. The loader is a `DataLoader`, which accelerate can prepare.
    `IndexedLoader.state_dict` resumes within an epoch.

    Args:
        loader: the loader of your loop. Sample i of its data set must be sample i of the clusters.
        clusters: clusters folder of the data set, made by ``clip-negatives prepare``.
        sampler: ``name`` or ``name:key=value,...`` of the negative sampler.
        weighting: ``name`` or ``name:key=value,...`` of the loss weighting. If it needs a fixed temperature, as ``blend`` does,
            call `clip_negatives.hold_temperature` or use a constant ``logit_scale``: this function cannot check your model.
        seed: seed of the batches; the same on every rank.
        backend: see `clip_negatives.losses.functional.weighted_info_nce`.
        local_loss: as in `open_clip.ClipLoss`.
        gather_with_grad: as in `open_clip.ClipLoss`.
        tokenize: turns n captions into the input of the model, shape (n, tokens), as the data set does; needed for a sampler
            that adds or replaces captions. Samples must then be ``(image, tokens)``; in a batch, each caption is followed by
            the captions added to it, and each image by the images added to it.
        keys: key, caption or image path of each sample, in the order of the data set, for comparison with the clusters folder.
            None reads them from the data set, see `clip_negatives.training.same_data.columns_of`. If it has none, only the
            number of samples is compared, with a warning.
        key_of: returns key, caption or image path of a sample. Each sample is then compared with the clusters folder while
            training. A data set that replaces a broken sample by another sample is an error.
        epochs: number of epochs of the training. Only methods that change during the training need it, such as
            ``weighted_infonce:warmup=0.5``.

    Raises:
        ArtifactError: `clusters` is not a clusters folder, is damaged, or belongs to other data.
        PluginError: a name or an option is unknown, or a value has the wrong type.
        InputError: the clusters and the data differ in size, the loader has no batch size, or has a sampler of its own that
            must not be replaced; a tokenizer is missing; the weighting removes all incorrect pairs; or the process group is
            missing.
        UnsupportedError: the sampler adds captions or images, which the weighting does not support.
        DataError: the loader reads a stream, or a batch is larger than the data.
    """
    if isinstance(getattr(loader, "dataset", None), IndexedDataset | ExtrasDataset):
        raise InputError("The loader has a sampler already. Attach the DataLoader of your loop, once.")
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs must be at least 1, got {epochs}.")
    if not isinstance(loader, DataLoader):
        raise InputError(f"Expected the DataLoader of your loop, got an object of type {type(loader).__name__}.")
    check_backend(backend, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    folder = read_clusters(clusters)
    context = replace(sampling_context(loader, folder, seed), epochs=epochs)
    check_same_samples(folder, loader.dataset, keys)
    negative_sampler = registry.create("negative_sampler", sampler, context)
    order = context.native_batches if getattr(negative_sampler, "keeps_native_order", False) else None
    if not isinstance(order, NativeOrder):
        order = None
        check_replaceable_order(loader, sampler, context)
    options: dict[str, Any] = {"rank": context.rank, "world_size": context.world_size, "backend": backend}
    options |= {"terms": loss_terms(weighting, folder.clusters)} | Additions.of(negative_sampler).loss_options()
    loss = NegativesClipLoss(local_loss, gather_with_grad, **options)
    loss.clusters, loss.observer = folder.digest, observer_of(negative_sampler)
    loss.weighting = resolved("loss_weighting", weighting)
    identity = None if key_of is None else SampleIdentity(folder.samples, key_of)
    is_shared = order is None or order.is_shared
    process = (context.rank, context.world_size) if is_shared else (0, 1)
    attached = IndexedLoader(loader, negative_sampler, tokenize, order, identity, process)
    attached.epochs, attached.spec = epochs, resolved("negative_sampler", sampler)
    return attached, loss


def sampling_context(loader: DataLoader[Any], folder: ClustersFolder, seed: int, size: int | None = None) -> SamplingContext:
    """Return the context of a sampler for this process; `size` is the batch size if `loader` has none."""
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(
            "The loader reads a stream, so a sampler cannot choose its batches. Use a map-style data set, or train with "
            "clip-negatives train --sampler in_batch."
        )
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", size)
    if not isinstance(size, int):
        raise InputError("Neither the loader nor its batch sampler has a batch size. Create the loader with batch_size=.")
    check_count(folder.clusters.n_samples, len(loader.dataset), folder.path)  # type: ignore[arg-type]
    grouped = dist.is_available() and dist.is_initialized()
    if not grouped and (started := started_processes()) > 1:
        raise InputError(
            f"WORLD_SIZE is {started}, but there is no process group, so every process would train on the same samples. Call "
            "torch.distributed.init_process_group before attach, or unset WORLD_SIZE."
        )
    options: dict[str, Any] = {"rank": dist.get_rank(), "world_size": dist.get_world_size()} if grouped else {}
    native = None if loader.batch_sampler is None else NativeOrder(loader.batch_sampler)
    replicas, world_size = getattr(getattr(native, "sampler", None), "num_replicas", None), options.get("world_size", 1)
    if replicas not in (None, world_size):
        raise InputError(
            f"The loader's sampler shares the data among {replicas} processes, but {world_size} train together. Create it "
            "inside the process group."
        )
    options |= {"seed": seed, "native_batches": native, "captions": Captions(folder.samples)}
    return SamplingContext.of(folder.clusters, size, **options)


def check_replaceable_order(loader: DataLoader[Any], sampler: str, context: SamplingContext) -> None:
    """Check that a negative sampler may compose the batches of a loader; warn of the samples that an epoch leaves out."""
    batches: Any = loader.batch_sampler
    native = batches if type(batches) is not BatchSampler else batches.sampler
    if type(native) not in ORDERS:
        raise InputError(
            f"The loader's {type(native).__name__} chooses its samples, and {sampler} would replace it. Use sampler='in_batch' "
            "to keep it, or create the loader with shuffle=True."
        )
    rest = context.n_samples % (context.batch_size * context.world_size)
    if rest and not batches.drop_last:
        warn(
            f"The loader has drop_last=False, but {sampler} fills whole steps: each epoch leaves out {rest} samples, "
            "different ones in each epoch. Create the loader with drop_last=True.",
            stacklevel=3,
        )


@dataclass(frozen=True)
class SampleIdentity:
    """Comparison of samples with a clusters folder while training."""

    samples: pa.Table  # of the clusters folder
    key_of: Callable[[Any], str]

    def __call__(self, sample: Any, index: int) -> str | None:
        """Return what is wrong with a sample, or None."""
        key = self.key_of(sample)
        known = [self.samples[name][index].as_py() for name in IDENTITIES if name in self.samples.column_names]
        if key in known:
            return None
        return (
            f"Sample {index} of the data set is {key!r}, but sample {index} of the clusters is {known[0]!r}. Raise an error "
            "for a broken sample instead of replacing it."
        )
