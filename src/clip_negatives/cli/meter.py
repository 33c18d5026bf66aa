"""The false-negative meter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table


@click.command(context_settings={"show_default": True})
@click.argument("clusters", type=click.Path(path_type=Path))
@click.option("--batch-size", default=256, help="Batch of all processes together.")
@click.option("--sampler", default="cluster_similarity", help="Negative sampler, NAME or NAME:key=value,...")
@click.option("--weighting", default="weighted_infonce", help="Loss weighting, NAME or NAME:key=value,...")
@click.option("--threshold", default=0.9, help="Similarity of image clusters that counts as high, -1 .. 1.")
@click.option("--seed", default=0, help="Seed of the batches.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the reading to this file too.")
def meter(clusters: Path, batch_size: int, json_file: Path | None, **options: Any) -> None:
    """Show how many incorrect pairs of a batch are suspect, and what a method would do about it."""
    from clip_negatives.artifacts import read_clusters
    from clip_negatives.atomic import replaced_file
    from clip_negatives.meter import meter as run

    reading = run(read_clusters(clusters), batch_size, **options)
    console = Console()
    table = Table("incorrect pairs with", "share of pairs", "per anchor", title=f"In-batch pairs, batch of {batch_size}")
    for row in reading.suspects:
        table.add_row(row.kind, f"{row.share:.3%}", f"{row.per_anchor:.2f}")
    console.print(table)
    truth = reading.treatments[0].truth
    table = Table("sampler", "weighting", "per anchor", "left after removal", "pairs removed")
    table.title = f"False negatives (same {truth}) by method"
    for item in reading.treatments:
        left, removed = f"{item.per_anchor_kept:.2f}", f"{item.removed_share:.1%}"
        table.add_row(item.sampler, item.weighting, f"{item.per_anchor:.2f}", left, removed)
    console.print(table)
    if json_file is not None:
        with replaced_file(json_file) as file:
            file.write_text(json.dumps(reading.to_dict(), indent=2) + "\n")
