"""Readers of training data: tables, tars, images and captions."""

from __future__ import annotations

import csv
import functools
import html.parser
import io
import struct
from pathlib import Path
from random import Random
from typing import Any

from formats import change_tar
from mutations import TEXTS, change_bytes, change_text
from PIL import Image
from reader import Reader

from clip_negatives.cli import printable
from clip_negatives.dataset import CsvPairs, Sample, TarPairs
from clip_negatives.dataset.places import places_of
from clip_negatives.dataset.source import read_image, read_small_image
from clip_negatives.errors import DataError
from clip_negatives.report.album import Picture
from clip_negatives.report.page import Table, environment


def table(scratch: Path) -> Reader:
    """Return the reader of csv files."""
    picture, file = scratch / "a.png", scratch / "pairs.csv"
    Image.new("RGB", (2, 2)).save(picture)
    rows = [["filepath", "title", "item"], *([str(picture), f"text {row}", f"{row // 2}"] for row in range(3))]

    def make(rng: Random) -> tuple[str, bytes]:
        some = [list(row) for row in rows]
        stream = io.StringIO()
        for _ in range(rng.choice((0, 1, 1, 2))):
            row = rng.choice(some)
            row[rng.randrange(len(row))] = rng.choice((*TEXTS, "/dev/stdin", "/", "\0.png", "x" * 300))
        writer = csv.writer(
            stream, delimiter=rng.choice("\t\t\t\t,;"), lineterminator=rng.choice(("\n", "\r\n")), quoting=rng.choice((0, 1))
        )
        writer.writerows(some)
        data = stream.getvalue().encode("utf-16" if rng.random() < 0.02 else "utf-8", "surrogatepass")
        return "csv", change_bytes(data, rng) if rng.random() < 0.5 else data

    def read(kind: str, content: bytes) -> None:
        file.write_bytes(content)
        source = CsvPairs(file, group_column="item")
        for part in source.parts():
            assert len(list(part.samples())) == len(source)
            part.digest()

    return Reader("bytes, cells, separators and encodings changed", (DataError,), make, read)


class _Tags(html.parser.HTMLParser):
    """List the elements of a page, and the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)


def captions(scratch: Path) -> Reader:
    """Return what shows captions and what tokenizes them."""
    from clip_negatives.integrations.open_clip.tiny import tiny_model

    tokenize = tiny_model(seed=0)[2]
    parts = environment().get_template("parts.html.j2").module

    def tags(text: str) -> list[Any]:
        parser = _Tags()
        shown = parts.table(Table(text, ("", f"{text}."), ((text, text),))) + parts.thumb(Picture(text, None), "Image")  # type: ignore[attr-defined]
        parser.feed(str(shown))
        parser.close()
        return parser.found

    expected, shape = tags("x"), tokenize(["x"]).shape

    def make(rng: Random) -> tuple[str, bytes]:
        text = rng.choice(TEXTS)
        for _ in range(rng.randrange(4)):
            text = change_text(text, rng)
        return "txt", text[: rng.choice((100, 100, 100, 1500))].encode("utf-8", "surrogatepass")

    def read(kind: str, content: bytes) -> None:
        text = content.decode("utf-8", "surrogatepass")
        assert tags(text) == expected
        assert all(letter.isprintable() or letter == "\n" for letter in printable(text))
        tokens = tokenize([text])
        assert tokens.shape == shape
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < 49408

    return Reader("markup, control characters, scripts and long words", (), make, read)


@functools.cache
def _images() -> tuple[bytes, ...]:
    """Return small images of all formats and modes that are read."""
    picture, found = Image.radial_gradient("L").resize((9, 7)), []
    for kind, modes in {
        "PNG": ("L", "P", "RGBA", "1", "I;16"),
        "JPEG": ("L", "RGB", "CMYK"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("P",),
        "BMP": ("RGB", "P"),
        "TIFF": ("RGB", "CMYK", "F"),
        "PPM": ("RGB",),
        "JPEG2000": ("RGB",),
    }.items():
        for mode in modes:
            stream = io.BytesIO()
            (picture.convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)).save(stream, kind)
            found.append(stream.getvalue())
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "EPS")
    return (*found, stream.getvalue())


def images(scratch: Path) -> Reader:
    """Return the reader of images."""

    def make(rng: Random) -> tuple[str, bytes]:
        data = rng.choice(_images())
        if rng.random() < 0.1:  # sizes that no memory holds
            data = (
                data[:16]
                + struct.pack(">II", rng.choice((2**31 - 1, 30000, 0, 1)), rng.choice((2**31 - 1, 30000, 1)))
                + data[24:]
            )
        return "image", change_bytes(data, rng)

    def read(kind: str, content: bytes) -> None:
        small = read_small_image(io.BytesIO(content), 8)
        assert small is None or (small.mode == "RGB" and max(small.size) <= 8)
        assert read_image(io.BytesIO(content), "an input").mode == "RGB"

    return Reader("bytes of PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 and EPS changed", (DataError,), make, read)


def tars(scratch: Path) -> Reader:
    """Return the readers of tars."""
    file = scratch / "pairs.tar"
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "PNG")
    members = [
        (f"k{key}.{ending}", data)
        for key in range(2)
        for ending, data in (("png", stream.getvalue()), ("txt", b"text"), ("json", b'{"item": "a"}'))
    ]

    def read(kind: str, content: bytes) -> None:
        file.write_bytes(content)
        places_of(str(file))
        for part in TarPairs(str(file), group_field="item").parts():
            for sample in part.samples():
                sample.key.encode()
                if isinstance(sample, Sample):
                    (sample.text + (sample.group or "")).encode()

    return Reader(
        "members, headers and bytes changed; compressed too", (DataError,), lambda rng: ("tar", change_tar(members, rng)), read
    )
