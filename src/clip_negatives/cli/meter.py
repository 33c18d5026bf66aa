"""The false-negative meter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from clip_negatives.cli.words import FILE, SAMPLER, WEIGHTING, examples

if TYPE_CHECKING:
    from clip_negatives.meter import Reading


@click.command(
    context_settings={"show_default": True},
    epilog=examples(
        "clip-negatives meter clusters/ --batch-size 1024",
        "clip-negatives meter clusters/ --sampler in_batch --weighting id_mask:by=text --json reading.json",
    ),
)
@click.argument("clusters", type=click.Path(path_type=Path))
@click.option("--batch-size", default=256, help="Batch of all processes together.")
@click.option("--sampler", default="cluster_similarity", type=SAMPLER, help="Negative sampler, NAME or NAME:key=value,...")
@click.option("--weighting", default="weighted_infonce", type=WEIGHTING, help="Loss weighting, NAME or NAME:key=value,...")
@click.option("--threshold", default=0.9, help="Similarity of clusters, or of samples, that counts as high, -1 .. 1.")
@click.option("--seed", default=0, help="Seed of the batches and of sampled pairs.")
@click.option("--json", "json_file", type=FILE, help="Write the reading to this file too.")
def meter(clusters: Path, batch_size: int, json_file: Path | None, **options: Any) -> None:
    """Show how many incorrect pairs of a batch are suspect, and what a method would do about it."""
    from clip_negatives.artifacts import read_clusters
    from clip_negatives.atomic import replaced_file
    from clip_negatives.meter import meter as run

    reading = run(read_clusters(clusters), batch_size, **options)
    # In a pipe there is no width to keep to: let no column be cut.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for table in (_suspects(reading), _treatments(reading)):
        console.print(table)
    if json_file is not None:
        with replaced_file(json_file) as file:
            file.write_text(json.dumps(reading.to_dict(), indent=2) + "\n")


def _suspects(reading: Reading) -> Table:
    table = Table("incorrect pairs with", "share of pairs", "per anchor", "counted on")
    table.title = f"Incorrect pairs of a uniform batch of {reading.batch_size}"
    for row in reading.suspects:
        table.add_row(row.kind, f"{row.share:.3%}", f"{row.per_anchor:.2f}", "all pairs" if row.exact else "a sample")
    return table


def _treatments(reading: Reading) -> Table:
    table = Table("sampler", "weighting", "false negative is", "per anchor", "kept", "their weight", "pairs removed")
    table.title = f"What the method makes of them, in batches of {reading.batch_size}"
    for item in reading.treatments:
        weight = "\N{EN DASH}" if item.false_weight is None else f"{item.false_weight:.2f}"
        numbers = f"{item.per_anchor:.2f}", f"{item.per_anchor_kept:.2f}", weight
        table.add_row(item.sampler, item.weighting, f"same {item.truth}", *numbers, f"{item.removed_share:.1%}")
    return table
