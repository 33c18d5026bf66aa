"""Check a training run before open_clip starts: its arguments, its data, its clusters."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from open_clip_train.params import parse_args

from clip_negatives import registry
from clip_negatives.artifacts import ClustersFolder, read_clusters
from clip_negatives.dataset import CsvPairs, TarPairs, open_pairs
from clip_negatives.errors import ArtifactError, DataError, InputError, UnsupportedError
from clip_negatives.extra_texts import Captions, texts_per_image
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.interfaces import SamplingContext
from clip_negatives.loss import NegativesClipLoss
from clip_negatives.prepare import cache_folder, prepare_cached
from clip_negatives.refresh import cluster_features
from clip_negatives.sampling import epoch_generator

SYNTHETIC_DIM = 32
"""Size of the random features that stand for synthetic data."""


def check_arguments(arguments: Sequence[str], options: TrainOptions) -> Namespace:
    """Parse open_clip's command line with its own parser and refuse what would train something else than was meant.

    Raises:
        UnsupportedError: the arguments ask for a loss or a trainer that our loss does not stand for.
        DataError: there are no training data, or they cannot be used as given.
        InputError: the run's name is taken, or an option needs other data.
    """
    args: Namespace = parse_args(list(arguments))
    item, _ = registry.default_registry().resolve("loss_weighting", options.weighting)
    if item.requires_logit_bias and not args.siglip:
        raise InputError(f"Expected --siglip after -- for weighting {item.name}, which needs a logit bias, got none. Add it.")
    for asked, what in (
        (args.distill_model is not None, "--distill-model"),
        (args.siglip and not item.requires_logit_bias, f"--siglip with weighting {item.name}"),
        ("coca" in args.model.lower(), f"--model {args.model} (CoCa)"),
        (args.horovod, "--horovod"),
    ):
        if asked:
            raise UnsupportedError(
                f"Expected training with the contrastive loss of CLIP, got {what}, whose loss our weights are not defined "
                "for. Leave it out, or train with open_clip_train itself."
            )
    if args.dataset_type != "synthetic" and not args.train_data:
        raise DataError("Expected --train-data FILE or --dataset-type synthetic after --, got neither.")
    if args.dataset_type == "synthetic" and not args.train_num_samples:
        raise DataError("Expected --train-num-samples beside --dataset-type synthetic, got none.")
    kind = kind_of(args)
    if options.refresh_every is not None and kind != "csv":
        raise InputError(f"Expected csv data for --refresh-every, which encodes every sample again, got {kind} data.")
    if kind == "csv":
        n = len(pairs(args).keys)
        if args.batch_size * world_size() > n:
            raise DataError(
                f"Expected at least {args.batch_size * world_size()} pairs for one step (batch size {args.batch_size} x "
                f"{world_size()} processes), got {n} in {args.train_data}. Use a smaller --batch-size."
            )
    if args.name and args.resume != "latest" and rank() == 0 and (Path(args.logs) / args.name / "out.log").exists():
        raise InputError(
            f"Expected a new name for the run, got {args.name}, which {args.logs} holds. Say --resume latest or another --name."
        )
    return args


def first_folder(args: Namespace, options: TrainOptions) -> ClustersFolder:
    """Return the clusters to start from: those that are named, or prepared here and cached, or random ones for synthetic data.

    Rank 0 prepares; the others read what it made once open_clip has joined them (`late_folder`).

    Raises:
        ClipNegativesError: they are missing or damaged, or the data cannot be encoded or clustered.
    """
    if options.clusters is not None:
        folder = read_clusters(options.clusters)
    elif kind_of(args) == "synthetic":
        folder = _synthetic(args, options)
    else:
        folder = prepare_cached(pairs(args), **encoding(options))
    return folder


def late_folder(args: Namespace, options: TrainOptions) -> ClustersFolder:
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


def kind_of(args: Namespace) -> str:
    """Return "csv", "webdataset" or "synthetic", by open_clip's own rule."""
    if args.dataset_type != "auto":
        return str(args.dataset_type)
    return "csv" if args.train_data.rsplit(".", 1)[-1] in ("csv", "tsv") else "webdataset"


def pairs(args: Namespace) -> CsvPairs | TarPairs:
    """Open the training data as open_clip will."""
    return open_pairs(
        args.train_data,
        dataset_type=kind_of(args),
        image_column=args.csv_img_key,
        text_column=args.csv_caption_key,
        separator=args.csv_separator,
    )


def rank() -> int:
    """Return the rank that the launcher gave this process, before open_clip joins the process group."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def world_size() -> int:
    """Return the number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))


def try_plugins(folder: ClustersFolder | None, args: Namespace, options: TrainOptions) -> None:
    """Build sampler and weighting once, so that what they refuse is refused before open_clip writes its first file.

    Raises:
        ClipNegativesError: they refuse, or do not go with each other or with the data.
    """
    item, _ = registry.default_registry().resolve("negative_sampler", options.sampler)
    kind, clusters, extra = kind_of(args), folder.clusters if folder is not None else None, 0
    if kind == "webdataset" and not item.keeps_native_order:
        raise UnsupportedError(
            f"Expected csv data for the sampler {item.name}, which chooses batches by index, got a webdataset stream. "
            "Use --sampler in_batch with it (the weighting works on streams, by sample key), or export the data to csv."
        )
    if kind != "webdataset":
        source = pairs(args) if kind == "csv" else None
        context = SamplingContext(
            args.train_num_samples if source is None else len(source.keys),
            args.batch_size,
            world_size=world_size(),
            seed=args.seed,
            clusters=clusters,
            captions=source.texts if source is not None else None if folder is None else Captions(folder.samples),
        )
        extra = texts_per_image(registry.create("negative_sampler", options.sampler, context))
        if extra and source is None:
            raise UnsupportedError(f"Expected csv data for the sampler {item.name}, which adds texts, got {kind} data.")
    NegativesClipLoss(terms=registry.create("loss_weighting", options.weighting)(clusters), extra_texts=extra)


def _synthetic(args: Namespace, options: TrainOptions) -> ClustersFolder:
    """Return clusters of random features: synthetic data are one picture and one text, which serve to time training only."""
    logging.warning("Synthetic data are one picture and one text: their clusters are random, for timing only.")
    n, generator = args.train_num_samples, epoch_generator(args.seed, 0)
    image, text = (F.normalize(torch.randn(n, SYNTHETIC_DIM, generator=generator), dim=1) for _ in range(2))
    clusters = cluster_features(image, text, clusterer=options.clusterer, text_clusterer=options.text_clusterer, seed=args.seed)
    samples = pa.table({"key": [str(row) for row in range(n)], "text": ["Dummy caption"] * n})
    return ClustersFolder(Path("synthetic"), clusters, samples, {})
