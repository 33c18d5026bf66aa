"""The command `labels`, which writes a labels folder from a clusters folder, or from clusters that another program made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clip_negatives.cli import early, parameters
from clip_negatives.cli.next_command import MODEL, TARS, show_next
from clip_negatives.cli.output import echo
from clip_negatives.dataset.assignment_columns import AssignmentColumns

if TYPE_CHECKING:
    from clip_negatives.storage.labels_folder import LabelsFolder

OF_TABLE = ("centroids", "data", "key", "shard", "id", "shard_pattern", "image_label", "text_label", "text", "separator")

column_options = parameters.collected(
    "columns",
    AssignmentColumns,
    click.option("--key-column", "key", help="Column with the key of the sample in its tar.  [default: __key__ or key]"),
    click.option("--shard-column", "shard", help="Column with the tar that holds the sample.  [default: shard or __url__]"),
    click.option("--id-column", "id", help="Column that names tar and key, such as 00012.tar/000120034."),
    click.option("--shard-pattern", help="Tar of a key, such as '{key:.5}.tar' for its first five characters."),
    click.option(
        "--image-label-column",
        "image_label",
        help="Column with the image cluster, 0 .. K-1.  [default: image_label or image_cluster]",
    ),
    click.option(
        "--text-label-column",
        "text_label",
        help="Column with the text cluster, 0 .. K-1.  [default: text_label or text_cluster]",
    ),
    click.option("--caption-key", "text", help="Column with the caption, which training compares with that of the sample."),
    click.option("--separator", help="Csv column separator.  [default: detected]"),
)


@parameters.command(
    "clip-negatives labels clusters/ labels/",
    "clip-negatives labels labels/ --from assignments.parquet --centroids image.npy,text.npy",
    "clip-negatives labels labels/ --from assignments/ --centroids image.npy,text.npy \\\n"
    "    --id-column uid --image-label-column image_prediction --text-label-column text_prediction \\\n"
    "    --data 'shards/{00000..00999}.tar'",
    "clip-negatives train --clusters labels/ --sampler in_batch -- \\\n"
    "    --train-data 'shards/{000..099}.tar' --model ViT-B-32",
)
@click.argument("folders", metavar="[CLUSTERS] OUTPUT", nargs=-1, required=True, type=parameters.FOLDER)
@click.option(
    "--from", "table", help="Table of clusters that another program made: parquet or csv, a file or a folder of parts."
)
@click.option("--centroids", metavar="IMAGES.npy,TEXTS.npy", help="Centroids of these clusters, K x D each.")
@click.option("--data", metavar="TARS", help="Compare the tars in the table with these, and store their sizes.")
@column_options
@click.pass_context
def labels(
    context: click.Context,
    folders: tuple[Path, ...],
    table: str | None,
    centroids: str | None,
    data: str | None,
    columns: AssignmentColumns,
) -> None:
    """Write the cluster labels of webdataset shards.

    CLUSTERS is a clusters folder made from tars. With --from and --centroids, the
    clusters come from another program instead, such as Spark or RAPIDS. OUTPUT gets
    one file per shard. Training on a stream reads the labels of one shard at a time,
    so memory does not grow with the data.
    """
    _check_usage(context, folders, table)
    *clusters, output = folders
    if table is None:
        early.check_clusters(clusters[0])
        early.check_output_folder(output, "labels")
    else:
        early.check_assignments(table, centroids or "")
        if data is not None:
            early.check_data(data, "webdataset")
        early.check_output_folder(output, "labels")
    from clip_negatives.distributed.torchrun import joined
    from clip_negatives.pipelines.given_labels import write_given_labels
    from clip_negatives.storage.labels_folder import write_labels

    def write() -> LabelsFolder:
        if table is None:
            return write_labels(clusters[0], output)
        return write_given_labels(table, centroids or "", output, columns, data=data)

    with joined() as processes:
        # One process writes: they would replace the folder of each other.
        folder = processes.together(lambda: write() if processes.rank == 0 else None)
    if folder is not None:
        _print_written(folder, output, data)


def _check_usage(context: click.Context, folders: tuple[Path, ...], table: str | None) -> None:
    """Raise a usage error unless the folders and options are those of one of the two ways."""
    expected = 2 if table is None else 1
    if len(folders) > expected:
        raise click.UsageError(
            f"Got unexpected extra argument ({folders[expected]})"
            if table is None
            else "--from takes the place of CLUSTERS. Name only OUTPUT, or omit --from"
        )
    if len(folders) < expected:
        raise click.UsageError("Missing argument 'OUTPUT'. Name CLUSTERS and OUTPUT, or a table with --from")
    given = [name for name in OF_TABLE if context.params.get(name) is not None]
    if table is None and given:
        raise click.UsageError(f"{_option(context, given[0])} needs --from")
    if table is not None and "centroids" not in given:
        raise click.UsageError("--from needs --centroids IMAGES.npy,TEXTS.npy")


def _option(context: click.Context, name: str) -> str:
    return next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)


def _print_written(folder: LabelsFolder, output: Path, data: str | None) -> None:
    n_samples = folder.image.n_samples
    echo(f"{output}: labels of {n_samples} samples in {len(folder.shards.files)} shards")
    after = "--train-data", data or TARS, "--train-num-samples", str(n_samples), *MODEL
    show_next("train", "--clusters", output, "--sampler", "in_batch", after=after)
