"""The commands `encode`, `centroids` and `assign`, which cluster large data in independent tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip_negatives.cli import early, parameters
from clip_negatives.cli.losses import max_lost_option, max_missing_option
from clip_negatives.cli.next_command import show_next
from clip_negatives.cli.output import echo
from clip_negatives.cli.pipelines import ENCODERS
from clip_negatives.cli.task_option import chosen_task, task_option
from clip_negatives.pipelines.recipe import POINTS_PER_CLUSTER, Recipe

if TYPE_CHECKING:
    from clip_negatives.pipelines.parts_by_task import TaskReport

FAULTS_SHOWN = 20


@parameters.command(
    "clip-negatives encode 's3://bucket/{00000..99999}.tar' s3://bucket/parts --task 3/100 \\\n"
    "    --image-encoder open_clip:ViT-B-32/laion2b_s34b_b79k \\\n    --text-encoder open_clip:ViT-B-32/laion2b_s34b_b79k",
    "clip-negatives encode 'shards/{000..099}.tar' parts/ --image-encoder pixels:dim=0 --text-encoder hashing",
    notes=ENCODERS,
)
@click.argument("data")
@click.argument("parts")
@task_option
@parameters.dataset_type_option
@parameters.column_and_key_options
@parameters.encoder_options
@parameters.feature_dtype_option
@max_lost_option
@max_missing_option
def encode(data: str, parts: str, task: str | None, dataset_type: str, recipe: Recipe, **limits: Any) -> None:
    """Encode image-text pairs tar by tar, in independent tasks.

    DATA names webdataset tars, or a table that names the tar of each sample. PARTS
    is the folder to fill: a path, or a URL such as s3://. Tasks need no connection
    to each other. Run them at any time, with the same options. A task takes its own
    tars first, then tars that no other task has taken. To continue after an
    interruption, run the same command again.
    """
    chosen = chosen_task(task)
    from clip_negatives.dataset import open_pairs
    from clip_negatives.dataset.missing import naming_option
    from clip_negatives.pipelines.encoded_parts import encode_parts

    with naming_option():
        source = open_pairs(data, recipe.columns, dataset_type=dataset_type, may_lack_tars=True)
    echo(source.summary, err=True)
    report = encode_parts(source, parts, recipe, task=chosen, **limits)
    _print_report(report, parts, "encoded")
    if not report.n_left:
        show_next("centroids", parts, "CENTROIDS", "--clusterer", "kmeans:n_clusters=NUMBER")
    _exit(report)


@parameters.command(
    "clip-negatives centroids parts/ centroids/ --clusterer kmeans:n_clusters=10000",
    "clip-negatives centroids s3://bucket/parts s3://bucket/centroids --clusterer kmeans:n_clusters=100000,levels=2",
)
@click.argument("parts")
@click.argument("output", metavar="CENTROIDS")
@parameters.clusterer_options
@click.option(
    "--points-per-cluster", default=POINTS_PER_CLUSTER, type=click.IntRange(min=1), help="Samples to draw for each cluster."
)
@click.option("--seed", default=Recipe.seed, help="Seed of the sample and the clustering.")
@max_lost_option
@max_missing_option
def centroids(parts: str, output: str, recipe: Recipe, points_per_cluster: int, **limits: Any) -> None:
    """Cluster a random sample of encoded parts.

    PARTS is the complete folder of `encode`. CENTROIDS is the folder to write:
    image.npy and text.npy, row k the centroid of cluster k. Each of the two is a
    path, or a URL such as s3://. The clusterer needs its number of clusters, such as
    kmeans:n_clusters=10000.
    """
    if "://" not in output:  # a URL is checked later
        early.check_output_folder(Path(output), "centroids")
    from clip_negatives.pipelines.sampled_centroids import write_centroids

    clusterers: dict[str, Any] = {"clusterer": recipe.clusterer, "text_clusterer": recipe.text_clusterer, "seed": recipe.seed}
    written = write_centroids(parts, output, **clusterers, points_per_cluster=points_per_cluster, **limits)
    clusters = f"{written['n_image_clusters']} image clusters, {written['n_text_clusters']} text clusters"
    echo(f"{output}: {clusters}, from {written['n_sampled']} of {written['n_samples']} pairs")
    show_next("assign", parts, output, "ASSIGNMENTS")


@parameters.command(
    "clip-negatives assign parts/ centroids/ assignments/",
    "clip-negatives assign s3://bucket/parts s3://bucket/centroids s3://bucket/assignments --task 3/100",
    "clip-negatives labels labels/ --from assignments/ \\\n    --centroids centroids/image.npy,centroids/text.npy",
)
@click.argument("parts")
@click.argument("centroids")
@click.argument("assignments")
@task_option
def assign(parts: str, centroids: str, assignments: str, task: str | None) -> None:
    """Assign each sample to its nearest centroids, tar by tar, in independent tasks.

    PARTS is the folder of `encode`, and CENTROIDS that of `centroids`. ASSIGNMENTS
    is the folder to fill; `labels --from` reads it. Each of the three is a path, or a
    URL such as s3://. To continue after an interruption, run the same command again.
    """
    chosen = chosen_task(task)
    from clip_negatives.pipelines.assigned_parts import assign_parts

    report = assign_parts(parts, centroids, assignments, task=chosen)
    _print_report(report, assignments, "assigned")
    if not report.n_left:
        files = ",".join(f"{centroids.rstrip('/')}/{side}.npy" for side in ("image", "text"))
        show_next("labels", "LABELS", "--from", assignments, "--centroids", files)
    _exit(report)


def _print_report(report: TaskReport, folder: str, done: str) -> None:
    n_complete = report.n_parts - report.n_left
    echo(f"{folder}: {len(report.done)} parts {done} by this task, {n_complete} of {report.n_parts} complete")
    if report.claimed:
        from clip_negatives.storage.claims import STALE

        wait = f"If one was killed or failed, run it again, or wait {STALE / 60:.0f} minutes and run this command again"
        echo(f"Other tasks have claimed {len(report.claimed)} of these parts. {wait}.", err=True)
    for line in (*report.warnings, *report.faults[:FAULTS_SHOWN]):
        echo(line, err=True)
    if (rest := len(report.faults) - FAULTS_SHOWN) > 0:
        echo(f"and {rest} more", err=True)


def _exit(report: TaskReport) -> None:
    if report.faults:
        sys.exit(1)
