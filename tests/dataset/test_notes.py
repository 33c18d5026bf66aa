"""What `prepare` tells about images that open_clip shows otherwise than a viewer, and about unknown groups."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from clip_negatives.dataset import Sample, TablePairs, TarPairs, notes, open_table
from clip_negatives.dataset.images import read_image
from clip_negatives.dataset.notes import DEEP, NO_GROUP, TRANSPARENT, TURNED, image_notes
from tests.pairs import listings, png, write_tar

VALUES = np.array([[0, 100, 256, 30_000, 65_535]], dtype=np.uint16)


def _file(image: Image.Image, form: str, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    stream.seek(0)
    return stream


def _kinds(image: Image.Image, form: str, **options: Any) -> list[str]:
    return [note.kind for note in image_notes(read_image(_file(image, form, **options), "a"))]


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[notes.ORIENTATION] = value
    return exif


def test_images_of_16_bits_become_white() -> None:
    deep = Image.fromarray(VALUES)
    big_endian = Image.frombytes("I;16B", (5, 1), VALUES.astype(">u2").tobytes())
    fractions = Image.fromarray(VALUES.astype(np.float32) / 65_535)
    signed = Image.fromarray(VALUES.astype(np.int32))
    for image, form in ((deep, "PNG"), (deep, "TIFF"), (big_endian, "TIFF"), (signed, "TIFF")):
        shown = read_image(_file(image, form), "a")
        assert np.asarray(shown)[0, :, 0].tolist() == [0, 100, 255, 255, 255]
        assert image_notes(shown) == [notes.Note(DEEP)]
    assert np.asarray(read_image(_file(fractions, "TIFF"), "a")).max() == 1
    assert _kinds(fractions, "TIFF") == [DEEP]
    assert _kinds(Image.fromarray(VALUES // 300), "PNG") == []


def test_transparent_pixels_show_the_color_under_them() -> None:
    clear, opaque = Image.new("RGBA", (8, 8), (200, 10, 10, 0)), Image.new("RGBA", (8, 8), (200, 10, 10, 255))
    assert read_image(_file(clear, "PNG"), "a").getpixel((0, 0)) == (200, 10, 10)
    palette = Image.new("P", (8, 8))
    for image, options in ((clear, {}), (Image.new("LA", (8, 8), (7, 0)), {}), (palette, {"transparency": 0})):
        assert _kinds(image, "PNG", **options) == [TRANSPARENT]
    corner = opaque.copy()
    corner.putpixel((0, 0), (0, 0, 0, 0))
    assert _kinds(corner, "PNG") == [TRANSPARENT]  # 1 of 64 pixels
    assert _kinds(opaque, "PNG") == _kinds(palette, "PNG") == []
    large = opaque.resize((256, 256))
    large.paste(corner)
    assert _kinds(large, "PNG") == []


def test_orientation_is_not_applied() -> None:
    image = Image.new("RGB", (8, 4))
    file = _file(image, "JPEG", exif=_orientation(6))
    assert (read_image(file, "a").size, ImageOps.exif_transpose(Image.open(file)).size) == ((8, 4), (4, 8))
    for form in ("JPEG", "PNG", "WEBP"):
        assert _kinds(image, form, exif=_orientation(6)) == [TURNED]
        assert _kinds(image, form, exif=_orientation(1)) == []
    turned = _file(image, "TIFF", exif=_orientation(6))
    assert (read_image(turned, "a").size, _kinds(image, "TIFF", exif=_orientation(6))) == ((4, 8), [])
    assert _kinds(image, "JPEG", exif=b"Exif\0\0no exif") == []


def test_colors_of_cmyk_are_right() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert read_image(_file(image, "JPEG", quality=100), "a").getpixel((3, 3)) == (255, 0, 0)
    assert _kinds(image, "JPEG") == []


def _summary(source: TablePairs | TarPairs) -> notes.Summary:
    summary: notes.Summary = {}
    for sample in (sample for part in source.parts() for sample in part.samples()):
        assert isinstance(sample, Sample)
        notes.count((*sample.notes, *image_notes(sample.image)), sample.name, summary)
    return summary


def test_notes_name_the_first_sample_of_tars_and_csv(tmp_path: Path) -> None:
    files = [_file(listings(8)[0][3], "PNG"), *(_file(Image.fromarray(VALUES), "PNG") for _ in range(2))]
    members, rows = {}, ["filepath\ttitle"]
    for key, file in zip("abc", files, strict=True):
        (tmp_path / f"{key}.png").write_bytes(file.getvalue())
        members |= {f"{key}.png": file.getvalue(), f"{key}.txt": b"text"}
        rows.append(f"{tmp_path}/{key}.png\ttext")
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    tar = write_tar(tmp_path / "a.tar", members)
    assert _summary(TarPairs(str(tar))) == {DEEP: [2, "b", ""]}
    table = _summary(open_table(tmp_path / "a.csv"))
    assert table == {DEEP: [2, f"row 1, {tmp_path}/b.png", ""]}
    assert notes.sentences(notes.merged([table, table]), 6) == [
        f"4 of 6 images have more than 8 bits per channel (first: row 1, {tmp_path}/b.png). "
        "open_clip makes most of their pixels white or black."
    ]


@pytest.mark.parametrize("missing", [None, b"{}", b"[1]"])
def test_one_sample_without_the_group_field_has_no_group(tmp_path: Path, missing: bytes | None) -> None:
    members: dict[str, bytes] = {}
    for key, fields in (("a", b'{"item": 1}'), ("b", missing), ("c", b'{"item": null}')):
        members |= {f"{key}.png": png(listings(8)[0][3]), f"{key}.txt": b"text"}
        members |= {} if fields is None else {f"{key}.json": fields}
    source = TarPairs(str(write_tar(tmp_path / "a.tar", members)), group_field="item")
    assert source.groups == ["1", "", ""]
    summary = _summary(source)
    assert {kind: entry[:2] for kind, entry in summary.items()} == {NO_GROUP: [1, "b"]}
    sentence = "1 of 3 samples have no .json with the group field (first: b). Their group is unknown."
    assert notes.sentences(summary, 3) == [sentence]
    notes.check_groups(summary, 3)
