from __future__ import annotations

import re
from pathlib import Path

import pytest

import clip_negatives
from clip_negatives import Recipe
from clip_negatives.dataset.columns import COMMON, SEPARATORS
from clip_negatives.errors import ClipNegativesError
from clip_negatives.pipelines.prepare import prepare
from tests.pairs import write_csv

ROOT = Path(clip_negatives.__file__).parent
DEFAULT = re.compile(r'"(filepath|title)"|(separator|delimiter)\b[^\n]*"\\t"')


def test_the_first_common_names_are_the_defaults_of_open_clip() -> None:
    from open_clip_train.params import parse_args

    args = parse_args([])
    assert (COMMON["image"][0], COMMON["text"][0], SEPARATORS[0]) == (
        args.csv_img_key,
        args.csv_caption_key,
        args.csv_separator,
    )


def test_defaults_of_columns_are_written_once() -> None:
    written = [file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*.py") for _ in DEFAULT.finditer(file.read_text())]
    assert written == ["dataset/columns.py"] * 2


@pytest.mark.parametrize(
    ("data", "recipe", "words"),
    [
        ([1, 2], Recipe(), "Expected a path, a URL or image-text pairs as data, got an object of type list"),
        ("pairs.csv", Recipe(seed="one"), "Expected a whole number >= 0 as seed, got 'one'"),
        ("pairs.csv", Recipe(clusterer=None), "Expected the text NAME or NAME:key=value,... of a plugin, got None"),
        ("pairs.csv", Recipe(image_encoder=None), "Expected the text of an image encoder, such as NAME:MODEL, got None"),
    ],
)
def test_arguments_of_a_wrong_type(data: object, recipe: Recipe, words: str, tmp_path: Path) -> None:
    source = data if data != "pairs.csv" else write_csv(tmp_path / "data", 4)
    with pytest.raises(ClipNegativesError, match=re.escape(words)):
        prepare(source, tmp_path / "out", recipe, progress=False)
    assert not (tmp_path / "out").exists()
