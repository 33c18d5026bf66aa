"""Options that say how training data are read; the names are open_clip's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_READING = (
    click.option("--dataset-type", type=click.Choice(["auto", "csv", "webdataset"]), default="auto", help="Kind of the data."),
    click.option("--csv-separator", "separator", default="\t", show_default="tab", help="What stands between csv columns."),
    click.option("--csv-img-key", "image_column", default="filepath", help="Csv column with the path of the image."),
    click.option("--csv-caption-key", "text_column", default="title", help="Csv column with the text."),
)

_GROUPS = click.option("--group-column", help="Column (or field of the tars' json) that says which pairs show the same.")


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `clip_negatives.dataset.open_pairs`."""
    return reading_options(_GROUPS(command))


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command those of them that say where images and texts stand."""
    for option in reversed(_READING):
        command = option(command)
    return command
