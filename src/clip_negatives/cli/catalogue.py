"""The real data set that ships with the package."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from clip_negatives.cli.words import examples


@click.group(epilog=examples("clip-negatives catalogue info", "clip-negatives catalogue export data/"))
def catalogue() -> None:
    """Look at or export the emoji catalogue that ships with the package."""


@catalogue.command(
    context_settings={"show_default": True},
    epilog=examples("clip-negatives catalogue export data/ --split train --format csv"),
)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--split", default="train", help="train, test, unseen or all.")
@click.option("--format", "form", default="both", help="csv, webdataset or both.")
@click.option("--shard-size", default=1000, help="Samples of a tar.")
def export(directory: Path, split: str, form: str, shard_size: int) -> None:
    """Write a split to DIRECTORY so that any CLIP trainer can read it."""
    from clip_negatives.catalogue import export as run

    click.echo(run(directory, split=split, format=form, shard_size=shard_size))


@catalogue.command(context_settings={"show_default": True}, epilog=examples("clip-negatives catalogue info"))
def info() -> None:
    """Show what is in it and under which licences."""
    from clip_negatives.catalogue import SPLITS, load

    table = Table("split", "listings", "items", "sellers", title="Emoji catalogue")
    for split in SPLITS:
        listings = load(split)
        sellers = ", ".join(sorted(Counter(listings.column("style"))))
        table.add_row(split, str(len(listings)), str(len(set(listings.column("item")))), sellers)
    console = Console()
    console.print(table)
    console.print("Licences: noto, noto-v1 Apache-2.0; fluent, fluent-flat MIT; twemoji CC BY 4.0; texts MIT (emojibase).")
