"""Clusters without a clustering of the data: ids of texts and groups alone, or random clusters for timing."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pyarrow as pa
import torch
import torch.nn.functional as F

from clip_negatives.clustering.fit import cluster_features
from clip_negatives.dataset import TablePairs
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.printing import log
from clip_negatives.sampling import epoch_generator
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.sample_ids import group_ids, text_ids


def ids_only(data: TablePairs) -> tuple[Clusters, pa.Table]:
    """Return the ids of texts and groups of a table, with a single cluster of all samples, and the table of samples."""
    columns = {"key": data.keys, "text": data.texts, "image": data.image_paths, "group": data.groups}
    samples = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items() if values is not None})
    everything = Clustering(torch.zeros(len(data), dtype=torch.int64), torch.ones(1, 1))
    similarity, texts, groups = torch.ones(1, 1), text_ids(samples), group_ids(samples)
    return Clusters(everything, everything, similarity, similarity, texts=texts, groups=groups), samples


def synthetic(args: Namespace, options: TrainOptions) -> ClustersFolder:
    """Return clusters of random features with 32 dimensions, for timing only: all synthetic samples are the same pair."""
    log("All synthetic samples are the same pair: the clusters are random, for timing only.")
    n, generator = args.train_num_samples, epoch_generator(args.seed, 0)
    image, text = (F.normalize(torch.randn(n, 32, generator=generator), dim=1) for _ in range(2))
    clusters = cluster_features(image, text, **options.recipe.clusterers, seed=args.seed, epoch=0)
    samples = pa.table({"key": [str(row) for row in range(n)], "text": ["Dummy caption"] * n})
    return ClustersFolder(Path("synthetic"), clusters, samples, {})
