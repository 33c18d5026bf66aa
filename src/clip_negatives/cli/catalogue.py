"""The command `catalogue`: the data set that ships with the package."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
from rich.table import Table

from clip_negatives.cli import parameters
from clip_negatives.cli.groups import Group
from clip_negatives.cli.next_command import numbered, show_next
from clip_negatives.cli.output import console, echo


@parameters.command("clip-negatives catalogue info", "clip-negatives catalogue export data/", make=click.group, cls=Group)
def catalogue() -> None:
    """Show or export the emoji catalogue, a small real data set."""


@parameters.command("clip-negatives catalogue export data/ --split train --format csv", make=catalogue.command)
@click.argument("directory", type=parameters.FOLDER)
@click.option("--split", default="train", help="Split: train, test, unseen (items that are not in train) or all.")
@click.option("--format", "form", default="both", help="Format: csv, webdataset or both.")
@click.option("--shard-size", default=1000, help="Samples per tar.")
def export(directory: Path, split: str, form: str, shard_size: int) -> None:
    """Write a split to DIRECTORY as csv or tars."""
    from clip_negatives.catalogue import export as write_split

    echo(str(write_split(directory, split=split, format=form, shard_size=shard_size)))
    table, tars = directory / f"{split}.csv", sorted(map(str, directory.glob(f"{split}-*.tar")))
    data = table if table.exists() else numbered(tars)
    show_next("prepare", str(data), "clusters/", "--group-column", "item")


@parameters.command("clip-negatives catalogue info", make=catalogue.command)
def info() -> None:
    """Show the size of each split and the licences."""
    from clip_negatives.catalogue import SPLITS, load

    table = Table("split", "listings", "items", "sellers", title="Emoji catalogue")
    for split in SPLITS:
        listings = load(split)
        sellers = ", ".join(sorted(Counter(listings.column("style"))))
        table.add_row(split, str(len(listings)), str(len(set(listings.column("item")))), sellers)
    console().print(table)
    echo("Licences: noto, noto-v1 Apache-2.0; fluent, fluent-flat MIT; twemoji CC BY 4.0;")
    echo("texts MIT (emojibase).")
    show_next("catalogue", "export", "data/")
