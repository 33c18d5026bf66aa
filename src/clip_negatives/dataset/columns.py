"""The columns of a data set: named by the user, or detected by common names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clip_negatives.advice import argument
from clip_negatives.errors import DataError

IMAGE, TEXT, SEPARATOR = "filepath", "title", "\t"  # open_clip's defaults

# Common names of columns, in lower case with one underscore between words.
IMAGE_NAMES = (
    *(IMAGE, "image", "image_path", "image_file", "image_filename", "img", "img_path", "path", "file", "file_path"),
    *("file_name", "filename", "product_image", "photo", "picture", "image_link", "url", "image_url"),
)
TEXT_NAMES = (
    *(TEXT, "text", "caption", "captions", "name", "description", "product_name", "product_title", "sentence", "prompt"),
)
SEPARATORS = f"{SEPARATOR},;|"  # of a csv file
CLOSE = 0.75  # least similarity of a misspelt name, 0 .. 1
COMMON = {"image": IMAGE_NAMES, "text": TEXT_NAMES}
PICTURE = re.compile(
    r"\.(jpe?g|png|webp|gif|bmp|tiff?)\b|\bhttps?://", re.IGNORECASE
)  # in a header that is really a first row: an image file or a URL


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to use. None: detected by common names, see `found_columns`.

    Attributes:
        image: column with the path of the image, or with the image. Unused for tars.
        text: column with the caption. For tars, the ending of a file such as ``cls``, or a field of the ``.json``.
        group: column, or field of the ``.json``, with the item that the pair shows, such as a product; pairs of one group are
            correct pairs. None: the pairs have no groups.
        separator: text between two columns of a csv file.
        key: column with the key of the sample in its tar; None: the key is the row number.
        shard: column with the path or URL of the tar that holds the sample.
        shard_pattern: path of this tar, made from the key, such as ``shards/{key:.5}.tar``, see
            `clip_negatives.dataset.tar_names`.
    """

    image: str | None = None
    text: str | None = None
    group: str | None = None
    separator: str | None = None
    key: str | None = None
    shard: str | None = None
    shard_pattern: str | None = None


def argument_of(column: str) -> str:
    """Return how the user sets a field of `Columns`, for an error message."""
    return argument(column, f"Columns({column}=...)")


def found_columns(columns: Columns, names: Sequence[Any], table: str, *, images: bool = True) -> dict[str, Any]:
    """Return the columns of the image, the text and, if they are named, the group, the key and the tar of a table.

    A column that the user does not name is detected by its name: open_clip's ``filepath`` and ``title`` if the table has both,
    else the only column with a common name (`COMMON`). Names are compared without case, spaces and hyphens.

    Args:
        columns: the columns that the user names.
        names: all columns of the table.
        table: name of the table, for messages.
        images: whether the column of the image is needed. If not, it may be missing or ambiguous.

    Raises:
        DataError: a column is missing or ambiguous.
    """
    if (columns.image, columns.text) == (None, None) and {IMAGE, TEXT} <= set(names):
        used: dict[str, Any] = {"image": IMAGE, "text": TEXT}
    else:
        needed = [role for role in COMMON if images or role != "image" or columns.image or len(_candidates(role, names)) == 1]
        used = {role: getattr(columns, role) or _common_column(role, names, table) for role in needed}
    used |= {role: name for role in ("group", "key", "shard") if (name := getattr(columns, role)) is not None}
    for role, column in used.items():
        if column not in names:
            close = difflib.get_close_matches(
                str(column).lower(), {str(name).lower(): name for name in names}, n=1, cutoff=CLOSE
            )
            similar = next((name for name in names if close and str(name).lower() == close[0]), None)
            meant = "" if similar is None else f" Did you mean {str(similar)!r}?"
            fault = f"{table} has no column {column!r} ({_listed(names)}).{meant}"
            raise DataError(f"{fault}{_hint(names) or f' Correct {argument_of(role)}.'}")
    return used


def _common_column(role: str, names: Sequence[Any], table: str) -> Any:
    candidates = _candidates(role, names)
    if len(candidates) == 1:
        return candidates[0]
    fault = f"several columns that may be the {role}" if candidates else f"no column with a common name of the {role}"
    raise DataError(f"{table} has {fault} ({_listed(names)}).{_hint(names) or f' Name one with {argument_of(role)}.'}")


def _candidates(role: str, names: Sequence[Any]) -> list[Any]:
    return [name for name in names if re.sub(r"[\W_]+", "_", str(name).strip().lower()) in COMMON[role]]


def _listed(names: Sequence[Any]) -> str:
    return f"columns: {', '.join(repr(str(name)) for name in names)}"


def _hint(names: Sequence[Any]) -> str:
    """Return a hint, beginning with a space, for a file without a header or with another separator; else ""."""
    if any(PICTURE.search(str(name)) for name in names):
        return " Its first line seems to be a pair: a line with the names of the columns is missing. Add it."
    if len(names) == 1 and (likely := next((mark for mark in SEPARATORS if mark in str(names[0])), None)):
        return f" Its columns seem to be separated by {likely!r}. Use {argument_of('separator')}."
    return ""
