"""Measurements of a run: the ranks of the test queries, and false negatives in its batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from torch import Tensor

from clip_negatives.compare.arguments import open_described
from clip_negatives.compare.queries import Queries
from clip_negatives.compare.results import TOP_K, rank_figures
from clip_negatives.dataset import TablePairs, TarPairs
from clip_negatives.host import registry
from clip_negatives.integrations.open_clip.arguments import parsed
from clip_negatives.integrations.open_clip.train_set import pairs
from clip_negatives.integrations.open_clip.trained import trained_towers
from clip_negatives.integrations.open_clip.without_clustering import ids_only
from clip_negatives.interfaces import LossTerms
from clip_negatives.meter import truth_of
from clip_negatives.metrics import FalseNegatives, chance_rank_at_k, first_correct
from clip_negatives.storage.clusters_folder import ClustersFolder, read_clusters
from clip_negatives.storage.sample_ids import group_ids, text_ids


def ranks(arguments: Sequence[str], checkpoint: Path, test: Mapping[str, Any]) -> tuple[dict[str, Any], Queries]:
    """Evaluate a trained checkpoint on test pairs: return MRR and Rank@k, Rank@k by chance, and the ranks of all queries.

    Text to image: each text is a query, all images are the gallery, and every image of the query's item is correct. Image to
    text is the reverse. `arguments` are the arguments of open_clip_train with which the checkpoint was trained.
    """
    source = open_described(test)
    n = len(source.keys)
    items = items_of(source)
    image_tower, text_tower = trained_towers(arguments, checkpoint)
    images, texts = image_tower.encode(list(source.images(0, n))), text_tower.encode(source.texts)
    rank, top = first_correct(texts, images, items, items)
    image_rank, _ = first_correct(images, texts, items, items)
    queries = Queries(rank, image_rank, top, items.unique(return_inverse=True)[1])
    chance = {f"chance_rank_{k}": chance_rank_at_k(items, items, k) for k in TOP_K}
    return {**rank_figures(queries), **chance, "queries": n}, queries


def items_of(source: TablePairs | TarPairs) -> Tensor:
    """Return an id of the item of each pair, int64, shape (N,): of its group or, in data without groups, of its text."""
    shards = source.shard_of if isinstance(source, TarPairs) else None
    columns = {"text": source.texts, "shard": shards, "group": source.groups}
    samples = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items() if values is not None})
    groups = group_ids(samples)
    return text_ids(samples) if groups is None else groups


def clusters_of(job_clusters: Path | None, arguments: Sequence[str]) -> ClustersFolder:
    """Return the clusters of a run; for a run on a table without clusters, the ids of its texts alone."""
    if job_clusters is not None:
        return read_clusters(job_clusters)
    data = cast("TablePairs", pairs(parsed(arguments)))
    return ClustersFolder(Path(data.path), *ids_only(data), {})


def false_negatives(batches: Sequence[Tensor], folder: ClustersFolder, weighting: str) -> dict[str, Any]:
    """Return the false negatives per anchor in `batches`, before and after the weighting removes pairs.

    Two samples are a false negative if they have the same group or, in data without groups, the same text. Removed pairs and
    weights are None if the weighting is computed at each step. Without false negatives, the weight is None too.
    """
    truth, groups = truth_of(folder)
    terms = registry.create("loss_weighting", weighting)(folder.clusters)
    is_table = isinstance(terms, LossTerms)  # else the weights are known only at each step
    metric = FalseNegatives()
    for index in batches:
        metric.update(groups[index], terms.take(index) if is_table else None)
    figures = {name: float(value) for name, value in metric.compute().items()}
    return {
        "false_negatives_truth": truth,
        "false_negatives_per_anchor": figures["per_anchor"],
        "false_negatives_kept_per_anchor": figures["per_anchor_kept"] if is_table else None,
        "false_weight": figures["false_weight"] if is_table and not math.isnan(figures["false_weight"]) else None,
        "removed_share": figures["removed_share"] if is_table else None,
        "removed_false_share": figures["removed_false_share"] if is_table else None,
    }
