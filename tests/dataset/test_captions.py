"""Captions of tars that are in another file than ``.txt``, or in a field of the ``.json``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clip_negatives.dataset import BrokenSample, TarPairs
from clip_negatives.dataset.captions import with_caption
from clip_negatives.errors import DataError
from tests.pairs import listings, png, write_tar


def _tar(file: Path, *samples: dict[str, bytes]) -> str:
    """Write a tar of samples a, b, ... with an image each."""
    pictures = [png(item[3]) for item in listings(8)]
    members = {
        f"{key}.{ending}": content
        for key, picture, sample in zip("abcdefgh", pictures, samples, strict=False)
        for ending, content in {"jpg": picture, **sample}.items()
    }
    return str(write_tar(file, members))


def _read(tar: str, field: str | None, group: str | None = None) -> dict[str, str]:
    """Return text or reason of each sample."""
    samples = TarPairs(tar, text_field=field, group_field=group).parts()[0].samples()
    return {sample.key: sample.reason if isinstance(sample, BrokenSample) else sample.text for sample in samples}


def test_file_with_the_ending_comes_before_the_field(tmp_path: Path) -> None:
    both = {"caption": b" shoe\n", "json": b'{"caption": "hat"}', "txt": b"other"}
    tar = _tar(
        tmp_path / "a.tar", both, {"json": b'{"caption": " hat "}', "txt": b"other"}, {"cls": b"7\n"}, {"cls": b"a shoe"}
    )
    assert _read(tar, "caption") == {
        "a": "shoe",
        "b": "hat",
        "c": "no .caption and no json field 'caption', only .jpg, .cls",
        "d": "no .caption and no json field 'caption', only .jpg, .cls",
    }
    for field in ("cls", ".CLS"):
        assert (_read(tar, field)["c"], _read(tar, field)["d"]) == ("7", "a shoe")
    source = TarPairs(tar, text_field="caption")
    assert (source.keys, source.texts) == (["a", "b"], ["shoe", "hat"])


def test_a_txt_is_read_unchanged(tmp_path: Path) -> None:
    tar = _tar(tmp_path / "a.tar", {"txt": b" shoe\n"}, {"json": b'{"txt": "hat"}'})
    assert _read(tar, None) == {"a": " shoe\n", "b": "no .txt, only .jpg, .json (fields: txt)"}
    assert _read(tar, "txt") == {"a": " shoe\n", "b": "hat"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("7", "7"),
        ("7.5", "7.5"),
        ('""', ""),
        ('"\\ud800x"', "\\ud800x"),
        ("null", "no .c and no json field 'c': it is null, only .jpg, .json (fields: c)"),
        ("NaN", "no .c and no json field 'c': it is not a number, only .jpg, .json (fields: c)"),
        ('["a"]', "no .c and no json field 'c': it is a list, only .jpg, .json (fields: c)"),
        ("{}", "no .c and no json field 'c': it is an object, only .jpg, .json (fields: c)"),
    ],
)
def test_values_of_a_json_field(tmp_path: Path, value: str, text: str) -> None:
    tar = _tar(tmp_path / "a.tar", {"json": f'{{"c": {value}}}'.encode()}, {"c": b"x"})
    assert _read(tar, "c") == {"a": text, "b": "x"}


def test_fields_of_caption_and_group(tmp_path: Path) -> None:
    samples = [{"json": json.dumps({"caption": text, "item": item}).encode()} for text, item in (("shoe", 1), ("hat", 2))]
    source = TarPairs(_tar(tmp_path / "a.tar", *samples), text_field="caption", group_field="item")
    assert (source.texts, source.groups) == (["shoe", "hat"], ["1", "2"])


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    tar = _tar(tmp_path / "a.tar", {"json": b"{"}, {"json": b"[1]"}, {"c": b"\xff"}, {"c": b"x"})
    reasons = _read(tar, "c")
    assert reasons["a"] == "the .json cannot be read"
    assert reasons["b"] == "no .c and no json field 'c', only .jpg, .json"
    assert reasons["c"] == "the text is not UTF-8"


def test_too_large_caption_is_named_by_its_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = _tar(tmp_path / "a.tar", {"c": b"x" * 9000}, {"c": b"x"})
    monkeypatch.setenv("CLIP_NEGATIVES_LIMITS", "member_bytes=8000")
    assert _read(tar, "c")["a"] == "the .c has more than 8000 bytes"


@pytest.mark.parametrize(
    ("field", "listed"), [(None, r"no \.txt, only \.jpg, \.cls"), ("x", r"no \.x and no json field 'x', only \.jpg, \.cls")]
)
def test_no_caption_at_all_says_what_the_samples_have(tmp_path: Path, field: str | None, listed: str) -> None:
    tar = _tar(tmp_path / "a.tar", {"cls": b"7"})
    with pytest.raises(DataError, match=rf"\(a: {listed}\)\. Name the ending or the json field of the caption with Columns"):
        len(TarPairs(tar, text_field=field))


def test_fingerprint_changes_with_the_field(tmp_path: Path) -> None:
    tar = _tar(tmp_path / "a.tar", {"cls": b"7", "txt": b"x"})
    assert len({TarPairs(tar, text_field=field).fingerprint() for field in (None, "cls", "txt")}) == 3


def test_sample_without_a_chosen_caption_has_no_txt() -> None:
    assert with_caption({"txt": b"x", "json": b"{}", "cls": None}, "c") == {"json": b"{}", "cls": None}
    assert with_caption({"txt": b"x", "cls": None}, "cls") == {"txt": None}
