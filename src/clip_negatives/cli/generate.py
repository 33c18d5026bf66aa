"""Write explicit incorrect pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clip_negatives.cli.words import FILE, SAMPLER, WEIGHTING, examples


@click.command(
    context_settings={"show_default": True},
    epilog=examples(
        "clip-negatives generate clusters/ --output incorrect_pairs.parquet --per-image 4",
        "clip-negatives generate clusters/ --sampler cluster_similarity:image_quantile=0.8",
        "torchrun --nproc-per-node 8 -m clip_negatives generate /shared/clusters --output /shared/incorrect_pairs.parquet",
    ),
)
@click.argument("clusters", type=click.Path(path_type=Path))
@click.option("--output", "-o", default="incorrect_pairs.parquet", type=FILE, help="File to write.")
@click.option("--sampler", default="cluster_similarity", type=SAMPLER, help="Negative sampler, NAME or NAME:key=value,...")
@click.option("--weighting", default="weighted_infonce", type=WEIGHTING, help="Loss weighting, NAME or NAME:key=value,...")
@click.option("--per-image", default=1, help="Pairs of each image, where there are so many.")
@click.option("--batch-size", default=256, help="Batch that samplers without an own rule for pairs draw them from.")
@click.option("--seed", default=0, help="Seed of the draw.")
def generate(clusters: Path, output: Path, **options: Any) -> None:
    """Write incorrect pairs of the clusters folder CLUSTERS as parquet.

    Each row has an image, its correct text, the incorrect text put in its place, and how reliable that is. Interrupted, it goes
    on where it stopped when the same command runs again. Under torchrun its processes share the work.
    """
    from clip_negatives.generate import generate as run
    from clip_negatives.processes import joined

    with joined() as processes:
        count = run(clusters, output, **options, processes=processes)
    if processes.rank == 0:
        click.echo(f"{output}: {count} incorrect pairs")
