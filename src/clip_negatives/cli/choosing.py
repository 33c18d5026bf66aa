"""The command `choose`, which compares methods on folds of the user's data."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip_negatives.cli import early, parameters
from clip_negatives.cli.clusters import clusters_and_data
from clip_negatives.cli.output import console, echo, progress

if TYPE_CHECKING:
    from rich.table import Table

    from clip_negatives.choosing import Choice
    from clip_negatives.dataset import TablePairs, TarPairs
    from clip_negatives.pipelines.recipe import Recipe
    from clip_negatives.storage.clusters_folder import ClustersFolder

SHOWN = 14  # candidates in the table
METHODS = parameters.PluginName("negative_sampler", "loss_weighting", is_list=True, extra_names=("menu", "default", "paper"))


@parameters.command(
    "clip-negatives choose clusters/",
    "clip-negatives choose train.csv --group-column product",
    "clip-negatives choose clusters/ --fold-by seller --data train.csv",
    "clip-negatives choose clusters/ --methods menu,my_weighting@0.1",
)
@click.argument("clusters", metavar="CLUSTERS_OR_DATA")
@click.option("--output", "-o", type=parameters.FOLDER, help="Folder of the choice.  [default: choice/ in the clusters folder]")
@click.option("--methods", type=METHODS, help="Methods, separated by commas.  [default: menu]")
@click.option(
    "--fold-by",
    help="What is held out: group, near-duplicates, or a column of the data.  [default: group if known, else near-duplicates]",
)
@click.option("--data", help="Data of the clusters. Needed if --fold-by names a column.")
@click.option("--folds", default=3, type=click.IntRange(min=2), help="Number of folds.")
@click.option("--seeds", default=1, type=click.IntRange(min=1), help="Runs of each candidate on each fold.")
@click.option("--batch-size", default=512, type=click.IntRange(min=2), help="Most samples of a batch.")
@click.option("--steps", default=250, type=click.IntRange(min=1), help="Steps of a run.")
@parameters.dataset_type_option
@parameters.column_options
@parameters.recipe_options
@parameters.json_option
def choose(
    clusters: str,
    output: Path | None,
    fold_by: str | None,
    data: str | None,
    dataset_type: str,
    recipe: Recipe,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Choose the method that serves retrieval best on held-out parts of your data.

    Trains linear heads on the features of the clusters, with each method of a menu,
    and says which one to train with, and how sure that is. For DATA, clusters are
    prepared and cached. To continue after an interruption, run the same command again.
    """
    early.check_clusters_or_data(clusters, dataset_type)
    if data is not None:
        early.check_data(data, dataset_type)
    if json_file is not None:
        early.check_output_file(json_file)
    from clip_negatives.choosing import choose as choose_method
    from clip_negatives.storage.output_file import write_json_output

    folder, source = clusters_and_data(clusters, dataset_type, recipe)
    values = None
    if fold_by is not None and (data is not None or source is not None):
        location = clusters if data is None else data
        values = _values(folder, location, fold_by, dataset_type, recipe)
    with progress("Training heads") as advance:
        choice = choose_method(folder, output, fold_by=fold_by, fold_values=values, on_run=advance, **options)
    _print(choice)
    target = output or folder.path / "choice"
    echo(f"Written: {target / 'choice.json'}")
    echo(f"Next: {_train_line(choice, folder, None if source is None else clusters, output)}")
    if json_file is not None:
        write_json_output(json_file, choice.to_dict())
