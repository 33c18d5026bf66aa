"""Many samples with one image and different texts are reported: the image may be a placeholder."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_negatives.dataset import open_table, tables
from clip_negatives.encoders import image_encoder, text_encoder
from clip_negatives.features import encode, frequent
from tests.pairs import write_csv

N = 60


def _warnings(file: Path, work: Path) -> list[str]:
    return encode(open_table(file), image_encoder("pixels:dim=8"), text_encoder("tfidf:dim=8"), work).warnings


def _with_placeholder(folder: Path, rows: range, *, texts: bool = True) -> Path:
    """Write pairs whose `rows` have the image of the first of them; without `texts`, their texts are few."""
    file = write_csv(folder, N)
    header, *lines = file.read_text().splitlines()
    images, titles, items = (list(column) for column in zip(*(line.split("\t") for line in lines), strict=True))
    for row in range(N):
        titles[row] = f"{titles[row]} {row}"
        if row in rows:
            images[row] = images[rows.start]
            titles[row] = titles[row] if texts else f"text {row % 5}"
    columns = zip(images, titles, items, strict=True)
    file.write_text("\n".join([header, *map("\t".join, columns)]) + "\n")
    return file


@pytest.mark.parametrize("looked_at", [frequent.LOOKED_AT, 20])
def test_placeholder_is_reported_with_count_and_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked_at: int) -> None:
    monkeypatch.setattr(tables, "ROWS", 16)
    monkeypatch.setattr(frequent, "LOOKED_AT", looked_at)
    file = _with_placeholder(tmp_path, range(5, 45))
    image = open_table(file).image_paths[5]
    assert _warnings(file, tmp_path / "work") == [
        f"40 of 60 samples with 40 different texts have the same image features (first: row 5, {image}). "
        "If the image is a placeholder, leave these samples out."
    ]


@pytest.mark.parametrize(("rows", "texts"), [(range(5, 14), True), (range(5, 45), False), (range(0), True)])
def test_few_equal_images_or_few_texts_are_usual(tmp_path: Path, rows: range, texts: bool) -> None:
    assert _warnings(_with_placeholder(tmp_path, rows, texts=texts), tmp_path / "work") == []
