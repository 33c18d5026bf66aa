"""The file of suspect pairs: written, edited by a user or a spreadsheet, and read back."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from clip_negatives import Columns
from clip_negatives.dataset import open_pairs
from clip_negatives.dataset.decided import (
    COLUMNS,
    Decisions,
    Samples,
    has_decisions,
    joined_groups,
    read_decisions,
    suspects_text,
    with_decisions,
)
from clip_negatives.errors import DataError
from tests.pairs import write_csv, write_tars

SAMPLES = Samples(
    keys=[str(row) for row in range(6)],
    texts=["red cup", "cup, red", "=HYPERLINK(1)", 'a "quoted", text', "two\nlines", "nan"],
    images=[f"images/{row}.png" for row in range(6)],
)


def rows(*pairs: tuple[int, int, str]) -> list[dict[str, str]]:
    figures = {"why": "similar", "image_similarity": "0.9", "text_similarity": "0.8", "agreement": "0.5", "lift": "99"}
    return [{"decision": decision, **figures, **SAMPLES.row(i, "a"), **SAMPLES.row(j, "b")} for i, j, decision in pairs]


def write(file: Path, content: list[dict[str, str]]) -> Path:
    file.write_text(suspects_text(content))
    return file


def test_decisions_are_read_back(tmp_path: Path) -> None:
    file = write(tmp_path / "suspects.csv", rows((0, 1, "same"), (2, 3, ""), (5, 4, "Different "), (1, 0, "same")))
    decisions = read_decisions(file, SAMPLES)
    assert decisions.same == ((0, 1),)
    assert decisions.different == ((4, 5),)
    assert [row["decision"] for row in decisions.rows] == ["same", "Different ", "same"]
    assert has_decisions(file)


def test_a_spreadsheet_runs_no_cell() -> None:
    text = suspects_text(rows((2, 0, "same")))
    assert "'=HYPERLINK(1)" in text
    assert ",=HYPERLINK" not in text


@pytest.mark.parametrize(("separator", "encoding", "line_end"), [(";", "utf-8-sig", "\r\n"), ("\t", "utf-8", "\n")])
def test_files_of_spreadsheets_are_read(tmp_path: Path, separator: str, encoding: str, line_end: str) -> None:
    content = rows((0, 1, "same"), (2, 3, "different"), (4, 5, "same"))
    file = tmp_path / "suspects.csv"
    with file.open("w", newline="", encoding=encoding) as stream:
        writer = csv.DictWriter(stream, COLUMNS, delimiter=separator, lineterminator=line_end)
        writer.writeheader()
        writer.writerows({name: value.replace("\n", line_end) for name, value in row.items()} for row in content)
    assert read_decisions(file, SAMPLES).same == ((0, 1), (4, 5))


def test_no_file_has_no_decisions(tmp_path: Path) -> None:
    assert not has_decisions(tmp_path / "missing.csv")
    assert not has_decisions(write(tmp_path / "suspects.csv", rows((0, 1, ""))))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert not has_decisions(tmp_path / "other.csv")


Change = Callable[[list[dict[str, str]]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda part: part[1].update(decision="maybe"),
            "row 2 below its header: the decision is 'maybe'. Write \"same\" or",
        ),
        (
            lambda part: part[1].update(text_a="green cup"),
            r"text_a is 'green cup', but row 2 of the data has .* Use the same data, in the same order, as the check that",
        ),
        (lambda part: part[1].update(key_b="17"), "row 2 below its header: key_b is '17', but row 3 of the data has '3'"),
        (lambda part: part[1].update(image_b="x.png"), "row 2 below its header: image_b is 'x.png', but row 3 of the data"),
        (lambda part: part[1].update(row_b="6"), "row 2 below its header: row_b is '6', not a row of the data"),
        (lambda part: part[1].update(row_b="x"), "row 2 below its header: row_b is 'x', not a row of the data"),
        (lambda part: part[1].update(SAMPLES.row(2, "b")), "row 2 .*: row_a and row_b are the same sample. Remove"),
        (lambda part: part.append({**part[0], "decision": "different"}), 'row 3 .* is "different", but row 1 has "same"'),
        (lambda part: [row.update(decision="") for row in part], "has no decision"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    content = rows((0, 1, "same"), (2, 3, "different"))
    change(content)
    with pytest.raises(DataError, match=message):
        read_decisions(write(tmp_path / "suspects.csv", content), SAMPLES)


def test_missing_columns_and_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing.csv does not exist"):
        read_decisions(tmp_path / "missing.csv", SAMPLES)
    frame = pd.DataFrame(rows((0, 1, "same"))).drop(columns="text_b")
    frame.to_csv(tmp_path / "suspects.csv", index=False)
    with pytest.raises(DataError, match=r'has no column "text_b"\. Use the suspects.csv that clip-negatives check wrote'):
        read_decisions(tmp_path / "suspects.csv", SAMPLES)


@pytest.mark.parametrize(
    ("same", "groups", "expected"),
    [
        ([(0, 1), (1, 4)], None, ["decided-0", "decided-0", "", "", "decided-0", ""]),
        ([(0, 3)], ["cup", "", "", "mug", "mug", ""], ["cup", "", "", "cup", "cup", ""]),
        ([(1, 3), (1, 2)], ["cup", "", "", "mug", "mug", ""], ["cup", "mug", "mug", "mug", "mug", ""]),
    ],
)
def test_same_pairs_join_groups(same: list[tuple[int, int]], groups: list[str] | None, expected: list[str]) -> None:
    assert joined_groups(Decisions(same=tuple(same)), groups, 6) == expected


@pytest.mark.parametrize("groups", [None, ["cup", "", "cup", "", "", ""]])
def test_contradictions_are_refused(groups: list[str] | None) -> None:
    same = ((0, 1), (1, 2)) if groups is None else ((0, 1),)
    with pytest.raises(
        DataError, match=r'Rows 0 and 2 .* are marked "different" in decided=, but other decisions or the group'
    ):
        joined_groups(Decisions(same, ((0, 2),)), groups, 6)


def test_decisions_change_groups_and_fingerprint_of_a_table(tmp_path: Path) -> None:
    pairs = open_pairs(write_csv(tmp_path, 8), Columns(group="item"))
    names = list(pairs.groups or ())
    left, right = 0, next(row for row, name in enumerate(names) if name != names[0])
    samples = Samples(pairs.keys, pairs.texts, pairs.image_paths)
    content = [{"decision": "same", **samples.row(left, "a"), **samples.row(right, "b")}]
    decided = with_decisions(pairs, write(tmp_path / "suspects.csv", content))
    joined = min(names[left], names[right])
    assert decided.groups == [joined if name in (names[left], names[right]) else name for name in names]
    assert list(pairs.groups or ()) == names
    assert decided.fingerprint() != pairs.fingerprint()


def test_tars_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a table, not tars"):
        with_decisions(open_pairs(write_tars(tmp_path, 8)), tmp_path / "suspects.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "is not in UTF-8. Save it as a csv file in UTF-8"),
        (suspects_text(rows((0, 1, "same"))).encode() + b"same,1,2\n", r"row 2 below its header: expected 14 fields"),
        (b'decision\n"open', "cannot be read as a csv file: unexpected end of data"),
    ],
)
def test_damaged_files_are_errors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "suspects.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_decisions(tmp_path / "suspects.csv", SAMPLES)
