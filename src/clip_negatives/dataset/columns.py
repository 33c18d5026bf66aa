"""The columns of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from clip_negatives.advice import argument


@dataclass(frozen=True)  # without slots: `Columns.image` is the default, for signatures and the command line
class Columns:
    """Column names of a csv file, with open_clip's defaults. For tars, only `group` is used: a field of the ``.json``.

    Attributes:
        image: column with the path of the image.
        text: column with the caption.
        group: column with the item that the pair shows, such as a product; pairs of one group are correct pairs.
        separator: text between two columns.
    """

    image: str = "filepath"
    text: str = "title"
    group: str | None = None
    separator: str = "\t"


def argument_of(column: str) -> str:
    """Return how the user sets a field of `Columns`, for an error message."""
    return argument(column, f"Columns({column}=...)")
