"""Steps before open_clip starts: read or prepare the clusters, and try the plugins."""

from __future__ import annotations

import socket
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch

from clip_negatives.advice import argument
from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.batches.extras import Additions, Captions
from clip_negatives.dataset import TablePairs
from clip_negatives.dataset.stored_images import EmbeddedImages
from clip_negatives.dataset.urls import check_local_file, expand_urls, is_plain
from clip_negatives.errors import ArtifactError, ClipNegativesError, InputError, UnsupportedError
from clip_negatives.integrations.open_clip.arguments import kind_of
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.open_clip.train_set import pairs, rank, world_size
from clip_negatives.integrations.open_clip.without_clustering import ids_only, synthetic
from clip_negatives.interfaces import Clusters, LossTerms, SamplingContext
from clip_negatives.losses.backends import check_backend
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.pipelines.prepare import cache_folder, prepare_cached
from clip_negatives.printing import log
from clip_negatives.storage.clusters_folder import ClustersFolder, read_clusters
from clip_negatives.storage.clusters_parts import BYTES
from clip_negatives.storage.labels_folder import ClustersOrLabels, LabelsFolder, read_labels
from clip_negatives.storage.manifest import LABELS_FOLDER
from clip_negatives.storage.shards import ClusteredShards
from clip_negatives.training.same_data import check_columns, spread, warn_of_newer
from clip_negatives.training.same_files import check_embedded_images, check_images, check_shards, warn_of_missing_shards
from clip_negatives.training.weighting import loss_terms


def first_folder(args: Namespace, options: TrainOptions, *, check_files: bool = False) -> ClustersOrLabels | None:
    """Return the clusters that the run starts with, or None if the run uses no clusters.

    They are read from the folder in `options`, or prepared and cached, or random for synthetic data. Rank 0 prepares. The other
    ranks call this function later, when open_clip has joined the processes, and read what rank 0 prepared. With `check_files`,
    compare the data files with the clustered ones: another machine may have other files.
    """
    if not options.uses_clusters:
        return None
    folder = _first_folder(args, options)
    if check_files:
        try:
            check_same_files(folder, args)
        except ClipNegativesError as error:
            raise type(error)(f"Rank {rank()} on {socket.gethostname()}: {error}") from error
    return folder


def _first_folder(args: Namespace, options: TrainOptions) -> ClustersOrLabels:
    kind = kind_of(args)
    if options.clusters is not None:
        is_labels = kind == "webdataset" and LABELS_FOLDER.is_at(options.clusters)
        return read_labels(options.clusters) if is_labels else read_clusters(options.clusters)
    if kind == "synthetic":
        return synthetic(args, options)
    data = pairs(args, options.recipe.columns.group)
    if options.requires_only_ids and isinstance(data, TablePairs):
        return ClustersFolder(Path(data.path), *ids_only(data), {})
    if rank() == 0:
        return prepare_cached(data, options.recipe)
    try:
        return read_clusters(cache_folder(data, options.recipe))
    except ArtifactError as error:
        raise ArtifactError(
            f"The clusters that rank 0 prepared cannot be read on this machine: {error} Set CLIP_NEGATIVES_CACHE to a folder "
            "that every machine shares."
        ) from error


def terms_of(folder: ClustersOrLabels | None, clusters: Clusters | None, options: TrainOptions) -> LossTerms | AnchorLoss:
    """Return the terms of the weighting. With a labels folder, they have no labels: each batch of the stream brings its own."""
    weighting = options.weighting
    terms = loss_terms(weighting, clusters, teacher=options.has_teacher)
    if not isinstance(folder, LabelsFolder):
        return terms
    reason = "needs all logits of a batch"
    if isinstance(terms, LossTerms):
        of_clusters = (None, folder.image.labels, folder.text.labels)
        if all(any(labels is known for known in of_clusters) for labels in (terms.image_labels, terms.text_labels)):
            return terms.for_stream()
        reason = "has labels of its own"
    raise UnsupportedError(
        f"The weighting {weighting} {reason}, but the labels folder {folder.path} has only the labels of the clusters. "
        f"Pass the clusters folder to {argument('clusters')}."
    )


def try_plugins(folder: ClustersOrLabels | None, args: Namespace, options: TrainOptions) -> None:
    """Create sampler and weighting once, to raise their errors before open_clip writes its first file."""
    device = torch.device(args.device)
    # Without a GPU, open_clip trains on the CPU.
    check_backend(options.backend, torch.device("cpu") if device.type == "cuda" and not torch.cuda.is_available() else device)
    sampler, _ = options.plugins
    kind, additions = kind_of(args), Additions()
    if kind != "webdataset":
        additions = _try_sampler(folder, kind, args, options)
    elif not sampler.keeps_native_order:
        raise UnsupportedError(
            f"The sampler {sampler.name} chooses samples by index, but a webdataset stream has no index. Use the "
            "sampler in_batch (weightings work on streams), or export the data to csv."
        )
    if folder is not None:
        check_same_files(folder, args)
    terms = terms_of(folder, None if folder is None else folder.clusters, options)
    _check_teacher(options, terms, additions)
    NegativesClipLoss(terms=terms, backend=options.backend, **additions.loss_options())


def _check_teacher(options: TrainOptions, terms: LossTerms | AnchorLoss, additions: Additions) -> None:
    """Check that a teacher is used, and that its checkpoint is there."""
    if not options.has_teacher:
        return
    if isinstance(terms, LossTerms) and not hasattr(options.plugins[0].factory, "observe"):
        name = "--teacher" if options.ema is None else "--ema"
        raise InputError(f"The weighting {options.weighting} uses no teacher. Omit {name}, or use the weighting distilled.")
    if additions:
        fault = f"The sampler {options.sampler} {additions}, which does not work with a teacher."
        raise UnsupportedError(f"{fault} Use another sampler.")
    if options.teacher is not None:
        check_local_file("checkpoint", options.teacher)


def check_same_files(folder: ClustersOrLabels, args: Namespace) -> None:
    """Raise ArtifactError if the tars or images of the training data are not the files that were clustered."""
    if kind_of(args) == "webdataset":
        if isinstance(folder, ClustersFolder) and "image" in folder.samples.column_names:
            fault = f"The clusters in {folder.path} were made from a csv file, so they identify no sample of a tar."
            raise ArtifactError(f"{fault} Run clip-negatives prepare on the tars.")
        shards = folder.shards if isinstance(folder, LabelsFolder) else ClusteredShards.of(folder)
        addresses = expand_urls(args.train_data)
        shards.check(addresses)
        check_shards(shards, addresses)
    elif kind_of(args) == "table" and isinstance(folder, ClustersFolder):
        check_images(folder)
        if "image" not in folder.samples.column_names:
            source = pairs(args)
            if isinstance(source, TablePairs) and isinstance(source.stored, EmbeddedImages):
                check_embedded_images(folder, source.stored)


def warn_of_newer_data(folder: ClustersOrLabels, args: Namespace) -> None:
    """Warn if the training data changed after the clusters were made (see `warn_of_newer`), or cannot be compared."""
    if isinstance(folder, ClustersFolder) and "image" in folder.samples.column_names:
        if BYTES not in folder.samples.column_names:
            fault = f"{folder.path} has no sizes of images: they were not compared."
            is_given = "features" in folder.manifest  # then no image was opened
            log(fault if is_given else f"{fault} To compare them, run clip-negatives prepare again.")
        warn_of_newer(folder.path, folder.manifest, "images", spread(folder.samples["image"]))
    elif kind_of(args) == "webdataset":
        shards = [shard for shard in expand_urls(args.train_data) if is_plain(shard)]
        warn_of_newer(folder.path, folder.manifest, "tars", spread(pa.array(shards, pa.string())))
        warn_of_missing_shards(folder)


def _try_sampler(folder: ClustersOrLabels | None, kind: str, args: Namespace, options: TrainOptions) -> Additions:
    """Create the sampler for data with an index; return what it adds to each sample."""
    n: int = args.train_num_samples
    captions: Sequence[str] | None = Captions(folder.samples) if isinstance(folder, ClustersFolder) else None
    if kind == "table":
        source = pairs(args)
        n, captions = len(source.keys), source.texts
        if isinstance(folder, ClustersFolder) and isinstance(source, TablePairs):
            columns = {"text": source.texts, **({"image": source.image_paths} if source.image_paths is not None else {})}
            check_columns(folder.path, columns, folder.samples)
            if {"image", BYTES}.isdisjoint(folder.samples.column_names):
                log(f"only the texts were compared with {folder.path}, because it has no paths or sizes of images")
    clusters = None if folder is None else folder.clusters
    context = SamplingContext(n, args.batch_size, 0, world_size(), args.seed, clusters, captions=captions, epochs=args.epochs)
    additions = Additions.of(options.create_sampler(context))
    if additions and kind == "synthetic":
        raise UnsupportedError(f"The sampler {options.sampler} {additions}, which synthetic data lack. Use another sampler.")
    if options.refresh_every is not None:
        options.recipe.check(n)
    return additions
