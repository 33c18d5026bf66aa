"""Read the catalogue."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from clip_negatives.errors import InputError

# "train" leaves one seller out. "test" has this seller's listings of items in "train"; "unseen" has the seller's other items.
SPLITS = ("train", "test", "unseen", "all")
COLUMNS = ("key", "text", "item", "style", "group", "subgroup", "tone")  # of a listing, without its picture and split


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Listings of the catalogue.

    Attributes:
        table: one row per listing: key (unique), item (listings of one item are correct pairs), style (the seller), group,
            subgroup, tone (0 plain, 1 .. 5 skin tone; not in the text), split, text, image (WebP, 32 x 32).
    """

    table: pa.Table

    def __len__(self) -> int:
        """Return the number of listings."""
        return int(self.table.num_rows)

    def column(self, name: str) -> Sequence[str]:
        """Return a column as strings."""
        return [str(value) for value in self.table[name].to_pylist()]

    def image(self, row: int) -> Image.Image:
        """Return the picture of a listing, RGB, on white."""
        with Image.open(io.BytesIO(self.table["image"][row].as_py())) as image:
            picture: Image.Image = image.convert("RGB")
            return picture


def load(split: str = "train") -> Catalogue:
    """Return the listings of a split, one of `SPLITS`, or raise InputError.

    Examples:
        >>> len(load("test"))
        1652
    """
    if split not in SPLITS:
        raise InputError(f"Expected a split among {', '.join(SPLITS)}, got {split!r}.")
    with as_file(files("clip_negatives.catalogue") / "data" / "catalogue.parquet") as file:
        table = pq.read_table(file)
    return Catalogue(table if split == "all" else table.filter(pc.equal(table["split"], split)))
