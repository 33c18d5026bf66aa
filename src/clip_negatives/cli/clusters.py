"""Clusters for the commands that take a clusters folder or data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from clip_negatives.cli import early
from clip_negatives.cli.output import echo
from clip_negatives.progress import stage

if TYPE_CHECKING:
    from clip_negatives.dataset import TablePairs, TarPairs
    from clip_negatives.pipelines.recipe import Recipe
    from clip_negatives.storage.clusters_folder import ClustersFolder


def clusters_and_data(location: str, dataset_type: str, recipe: Recipe) -> tuple[ClustersFolder, TablePairs | TarPairs | None]:
    """Return the clusters folder and None; for data, the cached clusters folder of the data, and the data."""
    from clip_negatives.dataset import open_pairs
    from clip_negatives.pipelines.prepare import prepare_cached
    from clip_negatives.pipelines.recipe import Recipe
    from clip_negatives.storage.clusters_folder import read_clusters

    if not early.is_data(location, dataset_type):
        return read_clusters(location), None
    with stage("Reading the data"):
        source = open_pairs(location, recipe.columns, dataset_type=dataset_type)
    echo(source.summary, err=True)
    return prepare_cached(source, replace(recipe, seed=Recipe.seed)), source  # --seed is that of the random draws
