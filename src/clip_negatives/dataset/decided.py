"""The file of suspect pairs, in which the user decides whether two samples show the same. `check` writes it and reads it.

A row names two samples by row number, key and text (and image path, if known). The user writes ``same`` or ``different`` into
the column `decision`. A row that does not match the data is an error.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clip_negatives.advice import argument
from clip_negatives.dataset.columns import SEPARATORS
from clip_negatives.dataset.urls import check_local_file
from clip_negatives.errors import DataError

if TYPE_CHECKING:
    from clip_negatives.dataset import TablePairs, TarPairs

SAME, DIFFERENT = "same", "different"
IDENTITY = ("row", "key", "text", "image")  # columns of each sample, with the endings _a and _b
FIGURES = ("image_similarity", "text_similarity", "agreement", "lift")
REQUIRED = tuple(f"{name}_{side}" for name in IDENTITY for side in "ab")
COLUMNS = ("decision", "why", *FIGURES, *REQUIRED)
SAME_DATA = "Use the same data, in the same order, as the check that wrote this file."
FORMULA = "=+-@\t\r"  # a spreadsheet would run a cell that begins with one of these characters


@dataclass(frozen=True, slots=True)
class Samples:
    """Identity of the samples of a data set, in order.

    Attributes:
        keys: key of each sample.
        texts: text of each sample.
        images: image path of each sample; None if unknown.
    """

    keys: Sequence[str]
    texts: Sequence[str]
    images: Sequence[str] | None = None

    def row(self, sample: int, side: str) -> dict[str, str]:
        """Return the columns of a sample on one side of a pair, "a" or "b"."""
        image = "" if self.images is None else self.images[sample]
        values = str(sample), self.keys[sample], self.texts[sample], image
        return {f"{name}_{side}": _cell(value) for name, value in zip(IDENTITY, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions of the user about pairs of samples.

    Attributes:
        same: pairs that show the same.
        different: pairs that show something different.
        rows: the rows of the file that have a decision.
    """

    same: tuple[tuple[int, int], ...] = ()
    different: tuple[tuple[int, int], ...] = ()
    rows: tuple[Mapping[str, str], ...] = field(default=(), repr=False)


def suspects_text(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of suspect pairs as the text of a csv file."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def read_decisions(file: str | Path, samples: Samples) -> Decisions:
    """Read the decisions in a file of suspect pairs.

    Raises:
        DataError: the file cannot be read, has no decision or an unknown one, or has rows that do not match these samples.
    """
    rows = _rows(Path(file))
    pairs: dict[tuple[int, int], tuple[str, int]] = {}
    decided = []
    for number, row in enumerate(rows, 1):
        where = f"{file}, row {number} below its header"
        decision = row["decision"].strip().lower()
        if decision not in ("", SAME, DIFFERENT):
            raise DataError(f'{where}: the decision is {decision!r}. Write "same" or "different", or leave it empty.')
        if not decision:
            continue
        pair = tuple(sorted(_sample(row, side, samples, where) for side in "ab"))
        if pair[0] == pair[1]:
            raise DataError(f"{where}: row_a and row_b are the same sample. Remove this row.")
        earlier, earlier_row = pairs.setdefault((pair[0], pair[1]), (decision, number))
        if earlier != decision:
            raise DataError(
                f'{where}: the decision is "{decision}", but row {earlier_row} has "{earlier}" for the same pair. Change one '
                "of the two."
            )
        decided.append(row)
    if not decided:
        raise DataError(f'{file} has no decision. Write "same" or "different" into its column "decision".')
    return Decisions(
        tuple(pair for pair, (decision, _) in pairs.items() if decision == SAME),
        tuple(pair for pair, (decision, _) in pairs.items() if decision == DIFFERENT),
        tuple(decided),
    )


def has_decisions(file: Path) -> bool:
    """Return whether a file is a file of suspect pairs with a decision; False if it does not exist or is something else."""
    if not file.is_file():
        return False
    try:
        return any(row["decision"].strip() for row in _rows(file))
    except DataError:
        return False


def with_decisions(pairs: TablePairs | TarPairs, file: str | Path) -> TablePairs:
    """Return the pairs of a table with the groups that the decisions in a file of suspect pairs join.

    Raises:
        DataError: the pairs are in tars, or the decisions do not fit them; see `read_decisions` and `joined_groups`.
    """
    from clip_negatives.dataset.tables import TablePairs

    if not isinstance(pairs, TablePairs):
        raise DataError(f"{argument('decided')} needs a table, not tars: the groups of tars are in their .json files.")
    decisions = read_decisions(file, Samples(pairs.keys, pairs.texts, pairs.image_paths))
    return pairs.with_groups(joined_groups(decisions, pairs.groups, len(pairs)))


def joined_groups(decisions: Decisions, groups: Sequence[str] | None, n_samples: int) -> list[str]:
    """Return the group of each sample, with the groups of all "same" pairs joined; "" is a sample without a group.

    Raises:
        DataError: two samples are marked "different", but are in one group.
    """
    names = list(groups) if groups is not None else [""] * n_samples
    parent: dict[str | int, str | int] = {}

    def root(node: str | int) -> str | int:
        while (above := parent.get(node, node)) != node:
            node = above
        return node

    def group_of(sample: int) -> str | int:
        return root(names[sample] or sample)  # a name is a str, a sample without a group is an int

    for left, right in decisions.same:
        first, second = sorted((group_of(left), group_of(right)), key=lambda node: (isinstance(node, int), node))
        parent[second] = first
    for left, right in decisions.different:
        if group_of(left) == group_of(right):
            raise DataError(
                f'Rows {left} and {right} of the data (counted from 0) are marked "different" in {argument("decided")}, but '
                "other decisions or the group column put them into one group. Change the decision, or the decisions that join "
                "them."
            )
    members = {sample for pair in decisions.same for sample in pair}
    joined = []
    for sample, name in enumerate(names):
        group = root(name) if name else root(sample) if sample in members else ""
        joined.append(f"decided-{group}" if isinstance(group, int) else group)
    return joined


def _rows(file: Path) -> list[dict[str, str]]:
    """Read the rows with Python's own reader: pandas reads the text "nan" as a missing value."""
    check_local_file("file of suspect pairs", str(file))
    try:
        text = file.read_bytes().decode("utf-8-sig")
        separator = max(SEPARATORS, key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = list(reader)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not in UTF-8. Save it as a csv file in UTF-8.") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as a csv file: {error}. Save it as a csv file again.") from error
    names = list(reader.fieldnames or ())
    if missing := [name for name in ("decision", *REQUIRED) if name not in names]:
        raise DataError(f'{file} has no column "{missing[0]}". Use the suspects.csv that clip-negatives check wrote.')
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise DataError(
                f"{file}, row {number} below its header: expected {len(names)} fields. Put texts with {separator!r} in quotes."
            )
    return [{name: row.get(name, "") for name in COLUMNS} for row in rows]


def _sample(row: Mapping[str, str], side: str, samples: Samples, where: str) -> int:
    """Return the sample on one side of a row, after comparing its key, text and image path with the data."""
    text = row[f"row_{side}"].strip().removesuffix(".0")
    sample = int(text) if text.isdecimal() else -1
    if not 0 <= sample < len(samples.keys):
        raise DataError(f"{where}: row_{side} is {text!r}, not a row of the data (0 .. {len(samples.keys) - 1}). {SAME_DATA}")
    expected = samples.row(sample, side)
    for name in IDENTITY[1:]:
        if _compared(row[f"{name}_{side}"]) != _compared(expected[f"{name}_{side}"]):
            raise DataError(
                f"{where}: {name}_{side} is {row[f'{name}_{side}']!r}, but row {sample} of the data has "
                f"{expected[f'{name}_{side}']!r}. {SAME_DATA}"
            )
    return sample


def _cell(value: str) -> str:
    """Return a value that a spreadsheet shows as text."""
    return f"'{value}" if value[:1] and value[0] in FORMULA else value


def _compared(value: str) -> str:
    """Return a value without what spreadsheets change: spaces and line ends."""
    return " ".join(value.split())
