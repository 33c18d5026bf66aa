"""Csv data are read as open_clip reads them; errors name the file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from open_clip_train.data import CsvDataset
from PIL import Image

from clip_negatives import Columns
from clip_negatives.dataset import TablePairs, open_pairs, open_table
from clip_negatives.errors import DataError
from clip_negatives.storage.sample_ids import text_ids
from tests.pairs import listings, write_csv


def test_rows_are_those_of_open_clip(tmp_path: Path) -> None:
    file = write_csv(tmp_path, 20)
    theirs = CsvDataset(str(file), lambda image: image.convert("RGB"), "filepath", "title", "\t", tokenizer=list)
    ours = open_table(file)
    assert len(ours) == len(theirs)
    assert list(ours.texts) == [str(text) for text in theirs.captions]
    assert list(ours.image_paths) == theirs.images
    for row, image in enumerate(ours.images(0, len(ours))):
        assert image.tobytes() == theirs[row][0].tobytes()


def test_images_from_the_middle(tmp_path: Path) -> None:
    source = open_table(write_csv(tmp_path, 80))
    assert [image.tobytes() for image in source.images(10, 75)] == [item[3].tobytes() for item in listings(80)[10:75]]


def test_relative_paths_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path, 2)
    (tmp_path / "list").mkdir()
    name = next((tmp_path / "images").iterdir()).name
    (tmp_path / "list" / "pairs.csv").write_text(f"filepath\ttitle\nimages/{name}\ta\n")
    source = open_table(tmp_path / "list" / "pairs.csv")
    monkeypatch.chdir(tmp_path)
    assert len(list(source.images(0, 1))) == 1


def test_missing_text_is_what_open_clip_trains_on_and_missing_group_is_unknown(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("filepath\ttitle\titem\na.png\t\t\nb.png\tb\tx\n")
    source = open_table(file, Columns(group="item"))
    theirs = CsvDataset(str(file), None, "filepath", "title", "\t", tokenizer=list)
    assert list(source.texts) == ["nan", "b"] == [str(text) for text in theirs.captions]
    assert source.groups == ["", "x"]


def test_missing_texts_are_told_once_and_are_no_text_in_common(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("filepath\ttitle\n" + "".join(f"{text}.png\t{text}\n" for text in ("a", "", "NA", "None", "null", "a")))
    for _ in range(2):
        source = open_table(file)
    assert len(caplog.messages) == 1
    assert f"4 of 6 rows of {file} have no text, first row 1 (counted from 0 after the header)" in caplog.text
    ids = text_ids(pa.table({"text": list(source.texts), "image": list(source.image_paths)})).tolist()
    assert ids[0] == ids[5]
    assert len(set(ids)) == 5
    assert len(text_ids(pa.table({"text": ["nan", "nan"], "shard": ["a", "a"]})).unique()) == 1  # of a tar, where it is a text


def test_a_text_that_swallows_rows_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text('filepath\ttitle\na.png\t"two\nlines"\nb.png\t"19 inch\nc.png\tc\nd.png\tof 5"\ne.png\te\n')
    assert len(open_table(file)) == 3
    assert len(caplog.messages) == 1
    assert f"The text of row 1 of {file} (counted from 0 after the header) contains 2 line breaks" in caplog.text


def test_missing_column_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    file = write_csv(tmp_path, 2)
    with pytest.raises(DataError, match=r"'caption' \(columns: 'filepath', 'title', 'item'\)\. Correct Columns\(text="):
        open_table(file, Columns(text="caption"))
    with pytest.raises(DataError, match=r"no column 'brand'.*Correct Columns\(group="):
        open_table(file, Columns(group="brand"))


def test_a_wrong_separator_gives_one_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"separated by ','\. Use Columns\(separator="):
        open_table(write_csv(tmp_path, 2, separator=","), Columns(separator="\t"))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "is empty"),
        ("filepath\ttitle\n", "no rows below its header"),
        ("filepath\ttitle\na\tb\tc\td\te\nx\ty\n", "have more fields than"),
    ],
)
def test_csv_without_pairs(tmp_path: Path, content: str, fault: str) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=fault):
        open_table(file)


def test_binary_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(DataError, match=r"is not in UTF-8: line 2 has the byte 0x80"):
        open_table(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_table(tmp_path / "none.csv")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "gone"])
def test_bad_image_is_named_with_its_row(tmp_path: Path, damage: str) -> None:
    source = open_table(write_csv(tmp_path, 8))
    file = Path(source.image_paths[5])
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"truncated": file.read_bytes()[:-200], "text": b"not an image", "empty": b""}[damage])
    images = source.images(0, 8)
    assert [next(images).size for _ in range(5)] == [(32, 32)] * 5
    with pytest.raises(DataError, match=rf"{file.name} \(row 5 of .*pairs.csv.*(Repair it|Correct its path) or leave it out"):
        next(images)


def test_fingerprint_changes_with_the_pairs_and_only_then(tmp_path: Path) -> None:
    file = write_csv(tmp_path, 8)
    first = open_table(file).fingerprint()
    assert open_table(file).fingerprint() == first
    assert open_table(file, Columns(group="item")).fingerprint() != first
    image = Path(open_table(file).image_paths[3])
    data = image.read_bytes()
    image.write_bytes(data + b"more")
    assert open_table(file).fingerprint() != first
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:-1], lines[-1].replace("\t", "\tnew ", 1)]))
    assert open_table(file).fingerprint() != first


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv"])
def test_ending_gives_the_type_as_in_open_clip(tmp_path: Path, name: str) -> None:
    file = write_csv(tmp_path, 2).rename(tmp_path / name)
    assert isinstance(open_pairs(file), TablePairs)
    assert isinstance(open_pairs(file.rename(tmp_path / "pairs.txt"), dataset_type="csv"), TablePairs)
    with pytest.raises(DataError, match="name the format with dataset_type="):
        open_pairs(tmp_path / "pairs.txt")


def test_an_image_that_may_not_be_read_is_not_to_be_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=r"permission denied\. Change its permissions or leave it out"):
        list(open_table(write_csv(tmp_path, 2)).images(0, 1))


def test_a_line_in_another_encoding_is_not_converted_as_a_whole(tmp_path: Path) -> None:
    """Conversion of the whole file would destroy the lines that are in UTF-8."""
    file = tmp_path / "pairs.csv"
    file.write_bytes("filepath,title\na.png,größer\n".encode() + "b.png,kleinör\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"several encodings: line 3 has the byte 0xf6") as error:
        open_table(file)
    assert "iconv" not in str(error.value)


def test_a_file_that_is_cut_off_is_not_said_to_be_unreachable(tmp_path: Path) -> None:
    content = gzip.compress(b"filepath,title\n" + b"".join(b"%d.png,text %d\n" % (row, row * row) for row in range(400)))
    (tmp_path / "pairs.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cut off"):
        open_table(tmp_path / "pairs.csv.gz")
