"""Make and try what a training run needs before open_clip starts: its clusters and its plugins."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F

from clip_negatives import registry
from clip_negatives.anchors import AnchorLoss
from clip_negatives.artifacts import ClustersFolder, read_clusters
from clip_negatives.backends import check_backend
from clip_negatives.dataset import CsvPairs
from clip_negatives.errors import ArtifactError, UnsupportedError
from clip_negatives.extra_texts import Captions, texts_per_image
from clip_negatives.integrations.open_clip.same_data import check_same_data
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.open_clip.train_set import kind_of, pairs, world_size
from clip_negatives.integrations.weighting import loss_terms
from clip_negatives.interfaces import Clusters, LossTerms, SamplingContext
from clip_negatives.labels import LabelsFolder, TrainedOn, is_labels_folder, read_labels
from clip_negatives.loss import NegativesClipLoss
from clip_negatives.prepare import cache_folder, prepare_cached
from clip_negatives.refresh import check_clusterers, cluster_features
from clip_negatives.sampling import epoch_generator

SYNTHETIC_DIM = 32
"""Size of the random features that stand for synthetic data."""


def read_folder(path: Path, kind: str) -> TrainedOn:
    """Read the clusters folder, or for a stream the labels folder, that is named.

    Raises:
        ArtifactError: it is missing or damaged, or holds labels for data that are read by index.
    """
    return read_labels(path) if kind == "webdataset" and is_labels_folder(path) else read_clusters(path)


def terms_of(folder: TrainedOn | None, clusters: Clusters | None, weighting: str) -> LossTerms | AnchorLoss:
    """Return what a weighting makes of clusters; without labels where those come with the samples of a stream.

    Raises:
        InputError: the weighting removes all incorrect pairs.
        UnsupportedError: the weighting looks at single samples, or has labels of its own, and only those of the clusters come
            with the stream.
    """
    terms = loss_terms(weighting, clusters)
    if not isinstance(folder, LabelsFolder):
        return terms
    if isinstance(terms, AnchorLoss):
        raise UnsupportedError(
            f"Expected a weighting of tables between clusters for the labels folder {folder.path}, got {weighting}, which is "
            "handed all logits of a batch. Name the clusters folder."
        )
    of_clusters = folder.clusters.image.labels, folder.clusters.text.labels
    own = [label for label in (terms.image_labels, terms.text_labels) if label is not None]
    if any(all(label is not one for one in of_clusters) for label in own):
        raise UnsupportedError(
            f"Expected a weighting of the clusters for the labels folder {folder.path}, got {weighting}, which has labels of "
            "its own. Name the clusters folder."
        )
    return terms.for_stream()


def first_folder(args: Namespace, options: TrainOptions) -> TrainedOn:
    """Return the clusters to start from: those that are named, or prepared here and cached, or random ones for synthetic data.

    Rank 0 prepares; the others read what it made once open_clip has joined them (`late_folder`).

    Raises:
        ClipNegativesError: they are missing or damaged, or the data cannot be encoded or clustered.
    """
    folder: TrainedOn
    if options.clusters is not None:
        folder = read_folder(options.clusters, kind_of(args))
    elif kind_of(args) == "synthetic":
        folder = _synthetic(args, options)
    else:
        folder = prepare_cached(pairs(args), **encoding(options))
    return folder


def late_folder(args: Namespace, options: TrainOptions) -> TrainedOn:
    """Return on a rank other than 0 what rank 0 prepared.

    Raises:
        ArtifactError: this machine does not see the folder.
    """
    if options.clusters is not None or kind_of(args) == "synthetic":
        return first_folder(args, options)
    path = cache_folder(pairs(args), **encoding(options))
    try:
        return read_clusters(path)
    except ArtifactError as error:
        raise ArtifactError(
            f"Expected the clusters that rank 0 prepared at {path}, on a disk that every machine sees, got: {error}"
        ) from error


def encoding(options: TrainOptions) -> dict[str, Any]:
    """Return the options of `clip_negatives.prepare.prepare` for clusters that training prepares by itself."""
    return {
        "image_encoder": options.image_encoder,
        "text_encoder": options.text_encoder,
        "clusterer": options.clusterer,
        "text_clusterer": options.text_clusterer,
    }


def try_plugins(folder: TrainedOn | None, args: Namespace, options: TrainOptions) -> None:
    """Build sampler and weighting once, so that what they refuse is refused before open_clip writes its first file.

    Raises:
        ClipNegativesError: they refuse, or do not go with each other or with the data.
    """
    wanted = torch.device(args.device)
    # open_clip trains on the CPU where the device that is asked for is not there.
    check_backend(options.backend, torch.device("cpu") if wanted.type == "cuda" and not torch.cuda.is_available() else wanted)
    item, _ = registry.default_registry().resolve("negative_sampler", options.sampler)
    kind, clusters, extra = kind_of(args), folder.clusters if folder is not None else None, 0
    if kind == "webdataset" and not item.keeps_native_order:
        raise UnsupportedError(
            f"Expected csv data for the sampler {item.name}, which chooses batches by index, got a webdataset stream. "
            "Use --sampler in_batch with it (the weighting works on streams, by sample key), or export the data to csv."
        )
    if kind != "webdataset":
        source = pairs(args) if kind == "csv" else None
        if isinstance(folder, ClustersFolder) and isinstance(source, CsvPairs):
            check_same_data(folder, source)
        context = SamplingContext(
            args.train_num_samples if source is None else len(source.keys),
            args.batch_size,
            world_size=world_size(),
            seed=args.seed,
            clusters=clusters,
            captions=_captions(folder) if source is None else source.texts,
        )
        extra = texts_per_image(registry.create("negative_sampler", options.sampler, context))
        if extra and source is None:
            raise UnsupportedError(f"Expected csv data for the sampler {item.name}, which adds texts, got {kind} data.")
        if options.refresh_every is not None:
            check_clusterers(context.n_samples, options.clusterer, options.text_clusterer)
    terms = terms_of(folder, clusters, options.weighting)
    NegativesClipLoss(terms=terms, extra_texts=extra, backend=options.backend)


def _captions(folder: TrainedOn | None) -> Captions | None:
    return Captions(folder.samples) if isinstance(folder, ClustersFolder) else None


def _synthetic(args: Namespace, options: TrainOptions) -> ClustersFolder:
    """Return clusters of random features: synthetic data are one picture and one text, which serve to time training only."""
    logging.warning("Synthetic data are one picture and one text: their clusters are random, for timing only.")
    n, generator = args.train_num_samples, epoch_generator(args.seed, 0)
    image, text = (F.normalize(torch.randn(n, SYNTHETIC_DIM, generator=generator), dim=1) for _ in range(2))
    clusters = cluster_features(image, text, clusterer=options.clusterer, text_clusterer=options.text_clusterer, seed=args.seed)
    samples = pa.table({"key": [str(row) for row in range(n)], "text": ["Dummy caption"] * n})
    return ClustersFolder(Path("synthetic"), clusters, samples, {})
