"""Write the labels of webdataset shards for training on streams."""

from __future__ import annotations

from pathlib import Path

import click

from clip_negatives.cli.words import examples


@click.command(
    context_settings={"show_default": True},
    epilog=examples(
        "clip-negatives labels clusters/ labels/",
        "clip-negatives train --clusters labels/ --sampler in_batch -- --train-data 'shards/{000..099}.tar' --model ViT-B-32",
    ),
)
@click.argument("clusters", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def labels(clusters: Path, output: Path) -> None:
    """Write the labels of CLUSTERS, a clusters folder made from tars, into the folder OUTPUT: one file a shard.

    Training on a stream then reads the labels of a shard as it comes to it, and holds none of the others in memory.
    """
    from clip_negatives.labels import write_labels

    written = write_labels(clusters, output)
    click.echo(f"{output}: labels of {written.clusters.n_samples} samples in {len(written.shards.files)} shards")
