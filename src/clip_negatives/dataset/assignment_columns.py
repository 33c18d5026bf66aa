"""Names of the columns of a table of assignments, named by the user or found by common names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from clip_negatives.advice import argument
from clip_negatives.errors import DataError

COMMON = {  # names that are found without an option, the first one first
    "key": ("__key__", "key"),
    "shard": ("shard", "__url__"),
    "image_label": ("image_label", "image_cluster"),
    "text_label": ("text_label", "text_cluster"),
}


@dataclass(frozen=True, slots=True)
class AssignmentColumns:
    """Names of the columns of a table of assignments. None: the first of `COMMON` in the table.

    Attributes:
        key: column with the key of the sample in its tar.
        shard: column with the path or URL of the tar.
        id: column that names both, such as ``00012.tar/000120034``; it replaces `key` and `shard`.
        shard_pattern: path of the tar, made from the key, such as ``{key:.5}.tar``; it replaces `shard`.
        image_label: column with the image cluster, 0 .. K-1.
        text_label: column with the text cluster, 0 .. K-1.
        text: column with the caption; training compares it with that of the sample. None: captions are not compared.
        separator: character between two columns of a csv file; None: detected.
    """

    key: str | None = None
    shard: str | None = None
    id: str | None = None
    shard_pattern: str | None = None
    image_label: str | None = None
    text_label: str | None = None
    text: str | None = None
    separator: str | None = None


def place_columns(columns: AssignmentColumns, names: Sequence[str], table: str) -> dict[str, str]:
    """Return the column of each role: image_label, text_label, id or key, shard unless a pattern names it, and text if named.

    Raises:
        DataError: a column is missing, or two options name the same thing.
    """
    replaced = ("key", "shard", "shard_pattern") if columns.id else ("shard",) if columns.shard_pattern else ()
    if extra := next((role for role in replaced if getattr(columns, role) is not None), None):
        chosen = argument("id" if columns.id else "shard_pattern")
        raise DataError(f"{chosen} and {argument(extra)} both name the tar or the key. Omit one of them.")
    named = {field.name: getattr(columns, field.name) for field in dataclasses.fields(columns)}
    used = {}
    for role in ("id", "key", "shard", "image_label", "text_label", "text"):
        if role in replaced or (role not in COMMON and named[role] is None):
            continue
        used[role] = named[role] or next((name for name in COMMON[role] if name in names), COMMON[role][0])
        if used[role] not in names:
            raise DataError(f"{table} has no column {used[role]!r} (columns: {', '.join(names)}). {_repair(role)}")
    return used


def _repair(role: str) -> str:
    repair = f"Name the right one with {argument(role)}"
    if role in ("key", "shard"):
        other = f"{argument('id')} if one column names tar and key"
        pattern = f", {argument('shard_pattern')} if the key tells the tar" if role == "shard" else ""
        return f"{repair}{pattern}, or {other}."
    return f"{repair}."
