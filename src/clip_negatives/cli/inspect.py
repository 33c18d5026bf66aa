"""The report on a clusters folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clip_negatives.cli.data_options import reading_options
from clip_negatives.cli.words import SAMPLER, WEIGHTING, examples


@click.command(
    context_settings={"show_default": True},
    epilog=examples(
        "clip-negatives inspect clusters/ --output report/",
        "clip-negatives inspect clusters/ --batch-size 1024 --weighting weighted_infonce:remove=true",
        "clip-negatives inspect clusters/ --data 'shards/{000..099}.tar'",
    ),
)
@click.argument("clusters", type=click.Path(path_type=Path))
@click.option("--output", "-o", default="report", type=click.Path(path_type=Path), help="Folder of the page.")
@click.option("--sampler", default="cluster_similarity", type=SAMPLER, help="Negative sampler, NAME or NAME:key=value,...")
@click.option("--weighting", default="weighted_infonce", type=WEIGHTING, help="Loss weighting, NAME or NAME:key=value,...")
@click.option("--batch-size", default=256, help="Batch of all processes together.")
@click.option("--pairs", default=60, help="Pairs shown of each kind.")
@click.option("--clusters-shown", default=8, help="Clusters shown of images, and as many of texts.")
@click.option("--seed", default=0, help="Seed of everything that is drawn.")
@click.option("--data", help="The data that were clustered, for their images: needed where these are in tars.")
@reading_options
def inspect(clusters: Path, output: Path, data: str | None, **options: Any) -> None:
    """Write a page to look at: what is in the clusters folder CLUSTERS, and what a method makes of it.

    OUTPUT/index.html shows clusters, similarities, the pairs themselves, and what other choices would do. It needs no
    network and no server: open it in a browser.
    """
    from clip_negatives.artifacts import read_clusters
    from clip_negatives.dataset import open_pairs
    from clip_negatives.report import write_inspection

    reading = {name: options.pop(name) for name in ("dataset_type", "separator", "image_column", "text_column")}
    folder = read_clusters(clusters)
    source = open_pairs(data, **reading) if data is not None else None
    written = write_inspection(folder, output, source=source, **options)
    missing = f", {written.missing} of them missing" if written.missing else ""
    click.echo(f"{written.page}: {written.size / 1e6:.1f} MB, {written.pictures} samples shown{missing}")
