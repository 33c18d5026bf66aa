"""The commands `meter` and `inspect`, which report on a clusters folder or on data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip_negatives.cli import early, parameters
from clip_negatives.cli.clusters import clusters_and_data
from clip_negatives.cli.next_command import COLUMNS, METHOD, MODEL, RECIPE, TRAIN_DATA, show_next, stream_options
from clip_negatives.cli.output import console, echo, is_stdout, write_json
from clip_negatives.progress import stage

if TYPE_CHECKING:
    from rich.table import Table

    from clip_negatives.meter import Reading
    from clip_negatives.pipelines.recipe import Recipe
    from clip_negatives.storage.clusters_folder import ClustersFolder


@parameters.command(
    "clip-negatives meter clusters/ --batch-size 1024",
    "clip-negatives meter clusters/ --sampler in_batch --weighting id_mask:by=text \\\n    --json reading.json",
)
@click.argument("clusters", metavar="CLUSTERS_OR_DATA")
@parameters.dataset_type_option
@parameters.column_options
@parameters.recipe_options
@parameters.batch_size_option
@parameters.sampler_option
@parameters.weighting_option
@click.option("--threshold", default=0.9, help="Pairs from this similarity on count as likely false negatives, -1 .. 1.")
@click.option("--seed", default=0, help="Seed of the random draws.")
@parameters.json_option
def meter(
    clusters: str, dataset_type: str, recipe: Recipe, batch_size: int | None, json_file: Path | None, **options: Any
) -> None:
    """Count the likely false negatives of a batch.

    Also shows how many of them the sampler and the weighting keep, and their weight.
    For DATA, clusters are prepared and cached.
    """
    early.check_clusters_or_data(clusters, dataset_type)
    if json_file is not None:
        early.check_output_file(json_file)
    from clip_negatives.checking import verdict_of
    from clip_negatives.cli.checking import print_answers
    from clip_negatives.meter import meter as read_meter

    folder, _ = clusters_and_data(clusters, dataset_type, recipe)
    with stage("Counting false negatives"):
        verdict = verdict_of(folder)
        reading = read_meter(folder, batch_size or _default_batch_size(folder), seed=recipe.seed, **options)
    to = console(stderr=is_stdout(json_file))
    print_answers(verdict.answers(), to)
    for table in _tables(reading):
        to.print(table)
    write_json(json_file, {**reading.to_dict(), "verdict": verdict.to_dict()})
    show_next("inspect", clusters, options=("dataset_type", *COLUMNS, *RECIPE, "batch_size", *METHOD))


@parameters.command(
    "clip-negatives inspect train.csv --output report/",
    "clip-negatives inspect clusters/ --output report/",
    "clip-negatives inspect clusters/ --batch-size 1024 \\\n    --weighting weighted_infonce:remove=true",
    "clip-negatives inspect clusters/ --data 'shards/{000..099}.tar'",
)
@click.argument("clusters", metavar="CLUSTERS_OR_DATA")
@click.option("--output", "-o", default="report", type=parameters.FOLDER, help="Folder of the report.")
@parameters.sampler_option
@parameters.weighting_option
@parameters.batch_size_option
@click.option("--pairs", default=60, help="Number of pairs to show of each kind, such as removed pairs.")
@click.option("--clusters-shown", default=8, help="Number of image clusters and of text clusters to show.")
@click.option("--seed", default=0, help="Seed of the random draws.")
@click.option("--data", help="Data set with the images. Needed to show images if the clusters were made from tars.")
@parameters.dataset_type_option
@parameters.column_options
@parameters.recipe_options
def inspect(
    clusters: str, output: Path, data: str | None, dataset_type: str, recipe: Recipe, batch_size: int | None, **options: Any
) -> None:
    """Write an HTML report on clusters and a method.

    For DATA, clusters are prepared and cached. OUTPUT/index.html shows clusters, similarities, pairs, and the effect of other
    settings. The report is one HTML file and needs no network or server.
    """
    early.check_clusters_or_data(clusters, dataset_type)
    if data is not None:
        clustered = early.clustered_data(data, dataset_type, Path(clusters))
    early.check_output_folder(output, "report")
    from clip_negatives.dataset import open_pairs
    from clip_negatives.report import write_inspection

    folder, source = clusters_and_data(clusters, dataset_type, recipe)
    if data is not None:
        source = open_pairs(clustered, recipe.columns, dataset_type=dataset_type)
    batch_size = batch_size or _default_batch_size(folder)
    with stage("Writing the report"):
        written = write_inspection(folder, output, source=source, batch_size=batch_size, seed=recipe.seed, **options)
    missing = f", {written.missing} images unreadable" if written.missing else ""
    echo(f"Report: {written.page} ({written.size / 1e6:.1f} MB), {written.pictures} samples shown{missing}")
    _show_training(folder, clusters if early.is_data(clusters, dataset_type) else None, clusters, data)


def _show_training(folder: ClustersFolder, prepared: str | None, clusters: str, data: str | None) -> None:
    """Print the command that trains with the reported method; `prepared` is the data if no clusters folder was given."""
    words = ["train"] if prepared else ["train", "--clusters", clusters]
    after = ["--train-data", prepared or data or TRAIN_DATA, *MODEL]
    options = [*COLUMNS, *(RECIPE if prepared else ()), "weighting"]
    if "shard" in folder.samples.column_names:  # a stream has its own order
        words += ["--sampler", "in_batch"]
        after += stream_options(folder)
    else:
        options += ["sampler"]
    show_next(*words, options=options, after=after)


def _default_batch_size(folder: ClustersFolder) -> int:
    """Return 256, or the number of samples if there are fewer."""
    return min(256, folder.clusters.n_samples)


def _tables(reading: Reading) -> tuple[Table, Table]:
    """Return the tables of suspect pairs and of false negatives."""
    from rich.table import Table

    suspects = Table("incorrect pairs with", "share", "per anchor", "pairs")
    suspects.title = f"Suspect pairs of a random batch of {reading.batch_size}"
    for row in reading.suspects:
        suspects.add_row(row.kind, f"{row.share:.3%}", f"{row.per_anchor:.2f}", "all" if row.exact else "random")
    treatments = Table(title=f"False negatives in batches of {reading.batch_size}")
    treatments.add_column("sampler + weighting", overflow="fold")
    for header in ("false negative", "per anchor", "kept", "weight", "removed"):
        treatments.add_column(header)
    treatments.caption = (
        "weight: of a false negative, relative to an ordinary incorrect pair; 1 = no change, 0 = removed. "
        "removed: share of all incorrect pairs."
    )
    before = ""
    for item in reading.treatments:
        weight = "–" if item.false_weight is None else f"{item.false_weight:.2f}"
        numbers = f"{item.per_anchor:.2f}", f"{item.per_anchor_kept:.2f}", weight, f"{item.removed_share:.1%}"
        method = f"{item.sampler} + {item.weighting}"
        treatments.add_row("" if method == before else method, f"same {item.truth}", *numbers)
        before = method
    return suspects, treatments
