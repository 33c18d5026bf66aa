"""Options that say how training data are read; the names are open_clip's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--dataset-type", type=click.Choice(["auto", "csv", "webdataset"]), default="auto", help="Kind of the data."),
    click.option("--csv-separator", "separator", default="\t", show_default="tab", help="What stands between csv columns."),
    click.option("--csv-img-key", "image_column", default="filepath", help="Csv column with the path of the image."),
    click.option("--csv-caption-key", "text_column", default="title", help="Csv column with the text."),
    click.option("--group-column", help="Column (or field of the tars' json) that says which pairs show the same."),
)


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `clip_negatives.dataset.open_pairs`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
