"""The command `choose`, which compares methods on folds of the user's data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip_negatives.cli import early, parameters
from clip_negatives.cli.clusters import clusters_and_data
from clip_negatives.cli.next_command import COLUMNS, MODEL, TRAIN_DATA, show_next, stream_options
from clip_negatives.cli.output import console, echo, is_stdout, write_json
from clip_negatives.cli.training import CHOSEN
from clip_negatives.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

    from clip_negatives.choosing import Choice
    from clip_negatives.dataset.columns import Columns
    from clip_negatives.pipelines.recipe import Recipe
    from clip_negatives.storage.clusters_folder import ClustersFolder

NAME_WIDTH = 30  # characters; the table then fits 80 columns
DETECTED = ("group", "near-duplicates")  # values of --fold-by that need no column of the data
METHODS = parameters.PluginName("negative_sampler", "loss_weighting", is_list=True, extra_names=("menu", "default", "paper"))


@parameters.command(
    "clip-negatives choose clusters/",
    "clip-negatives choose train.csv --group-column product",
    "clip-negatives choose clusters/ --fold-by seller --data train.csv",
    "clip-negatives choose clusters/ --methods menu,my_weighting@0.1",
)
@click.argument("clusters", metavar="CLUSTERS_OR_DATA")
@click.option("--output", "-o", type=parameters.FOLDER, help="Folder of the choice.  [default: choice/ in the clusters folder]")
@click.option(
    "--methods",
    type=METHODS,
    help="Methods, separated by commas; menu stands for the default list. In-batch negatives and controls are always added.  "
    "[default: menu]",
)
@click.option(
    "--fold-by",
    help="What is held out: group, near-duplicates, or a column of the data.  [default: group if at least half of the samples "
    "have one, else near-duplicates]",
)
@click.option("--data", help="Data of the clusters. Needed if --fold-by names a column.")
@click.option("--folds", default=3, type=click.IntRange(min=2), help="Number of folds.")
@click.option("--seeds", default=1, type=click.IntRange(min=1), help="Runs of each method on each fold.")
@click.option("--batch-size", default=512, type=click.IntRange(min=2), help="Maximum batch size.")
@click.option("--steps", default=250, type=click.IntRange(min=1), help="Steps of a run.")
@parameters.workers_option
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
    from clip_negatives.choosing.choice import FILE, FOLDER
    from clip_negatives.report import write_choice_page

    folder, source = clusters_and_data(clusters, dataset_type, recipe)
    values = None
    if fold_by not in (None, *DETECTED) and (location := data or (clusters if source is not None else None)) is not None:
        values = _values(folder, location, dataset_type, replace(recipe.columns, group=fold_by))
    choice = choose_method(folder, output, fold_by=fold_by, fold_values=values, **options)
    page = write_choice_page(choice, output or folder.path / FOLDER)
    _print(choice, console(stderr=is_stdout(json_file)))
    file = (output or folder.path / FOLDER) / FILE
    echo(f"Choice: {file}. Report: {page}", err=is_stdout(json_file))
    write_json(json_file, choice.to_dict())
    train_data = data or (clusters if source is not None else TRAIN_DATA)
    method = CHOSEN if output is None else str(file)
    show_next(
        "train",
        "--clusters",
        folder.path,
        "--method",
        method,
        options=COLUMNS,
        after=("--train-data", train_data, *MODEL, *stream_options(folder)),
    )


def _values(folder: ClustersFolder, location: str, dataset_type: str, columns: Columns) -> list[str]:
    """Return the values of a column of the data, whose texts must be those of the clusters."""
    from clip_negatives.dataset import open_pairs

    source = open_pairs(location, columns, dataset_type=dataset_type, images=False)
    texts = folder.samples["text"].to_pylist()
    if list(source.texts) != texts:
        place = next((row for row, pair in enumerate(zip(source.texts, texts, strict=False)) if pair[0] != pair[1]), None)
        fault = f"has {len(source)} samples, but the clusters have {len(texts)}"
        fault = fault if place is None else f"has another text in row {place} than the clusters"
        raise DataError(f"{location} {fault}. Use --data with the file that the clusters were prepared from.")
    return list(source.groups or ())


def _print(choice: Choice, to: Console) -> None:
    """Print the answer, the table of methods, and what limits the answer."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    to.print(choice.sentence, style="bold")
    setting = choice.setting
    to.print(
        f"Held out: {choice.held_out}. {setting['n_queries']:,} queries in {setting['folds']} folds, {setting['seeds']} "
        f"seed{'s' * (setting['seeds'] > 1)}, batches of {setting['batch_size']}."
    )
    title = f"Figures in %. Gain in MRR over {choice.reference}, with simultaneous 95 % confidence intervals"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", max_width=NAME_WIDTH, overflow="fold")
    for column in ("MRR", "Rank@1", "Rank@10", "gain"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in choice.rows:
        gain, low, high = (100 * value for value in row.gain)
        interval = "reference" if row.name == choice.reference else f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]"
        name = f"{row.name} (control)" if row.is_control else row.name
        table.add_row(name, *(f"{100 * value:.1f}" for value in (row.mrr, row.rank_1, row.rank_10)), interval)
    to.print(table)
    for sentence in choice.warnings:
        to.print(sentence)
