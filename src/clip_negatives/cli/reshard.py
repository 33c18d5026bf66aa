"""Write webdataset shards that hold their share of every cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clip_negatives.cli.words import SAMPLER, examples


@click.command(
    context_settings={"show_default": True},
    epilog=examples(
        "clip-negatives reshard 'shards/{000..099}.tar' clusters/ resharded/",
        "clip-negatives reshard 'shards/{000..099}.tar' clusters/ topics/ --sampler one_cluster --samples-per-shard 1000",
        "torchrun --nproc-per-node 8 -m clip_negatives reshard 's3://bucket/{00000..09999}.tar' clusters/ /shared/resharded",
    ),
)
@click.argument("data")
@click.argument("clusters", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--sampler", default="cluster_similarity", type=SAMPLER, help="Negative sampler, NAME or NAME:key=value,...")
@click.option("--samples-per-shard", default=10_000, help="Samples of a new shard.")
@click.option("--seed", default=0, help="Seed of the sampler.")
def reshard(data: str, clusters: Path, output: Path, **options: Any) -> None:
    """Write the samples of DATA (webdataset tars) into new tars, each composed as the sampler composes a batch of that size.

    CLUSTERS is the clusters folder of DATA. OUTPUT gets the tars, their sizes.json, and labels/ for training on them.
    Interrupted, it goes on where it stopped when the same command runs again. Under torchrun its processes share the work.
    """
    from clip_negatives.processes import joined
    from clip_negatives.reshard import reshard as run

    with joined() as processes:
        done = run(data, clusters, output, **options, processes=processes)
    if processes.rank == 0:
        click.echo(f"{output}: {done.samples} samples in {done.shards} shards")
