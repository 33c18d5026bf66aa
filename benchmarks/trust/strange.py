"""Pictures and captions that data sets hold by accident: what the campaign of samples puts into real listings."""

from __future__ import annotations

import io
import random
import string
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

Picture = Callable[[Image.Image], tuple[bytes, str]]
"""Makes of a picture in RGB the bytes of a file, and the suffix of its name."""

WORDS = ("red", "blue", "shoe", "photo", "of", "a")


def _stored(kind: str, **how: object) -> Picture:
    def store(image: Image.Image) -> tuple[bytes, str]:
        stream = io.BytesIO()
        image.save(stream, kind, **how)
        return stream.getvalue(), {"JPEG": ".jpg"}.get(kind, f".{kind.lower()}")

    return store


def _as(change: Callable[[Image.Image], Image.Image], store: Picture = _stored("PNG")) -> Picture:  # noqa: B008  (a constant)
    return lambda image: store(change(image))


def _mode(mode: str, store: Picture = _stored("PNG")) -> Picture:  # noqa: B008  (a constant)
    return _as(lambda image: image.convert(mode), store)


def _sized(width: int, height: int) -> Picture:
    return _as(lambda image: image.resize((width, height)))


def _transparent_palette(image: Image.Image) -> tuple[bytes, str]:
    return _stored("PNG", transparency=0)(image.convert("P"))


def _sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def _moving(kind: str) -> Picture:
    return lambda image: _stored(kind, save_all=True, append_images=[image.rotate(90)])(image)


def _turned(image: Image.Image) -> tuple[bytes, str]:
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    return _stored("JPEG", exif=exif)(image)


PICTURES: Mapping[str, Picture] = {
    "grayscale": _mode("L"),
    "grayscale with transparency": _mode("LA"),
    "black and white, 1 bit": _mode("1"),
    "16-bit grayscale": _as(_sixteen_bits),
    "palette": _mode("P"),
    "palette with transparency": _transparent_palette,
    "all transparent": _as(lambda image: Image.new("RGBA", image.size, (0, 0, 0, 0))),
    "CMYK JPEG": _mode("CMYK", _stored("JPEG")),
    "progressive JPEG, turned by EXIF": _turned,
    "WebP without loss": _stored("WEBP", lossless=True),
    "animated WebP": _moving("WEBP"),
    "1 x 1": _sized(1, 1),
    "1 x 2000": _sized(1, 2000),
    "2000 x 1": _sized(2000, 1),
    "all black": _as(lambda image: Image.new("RGB", image.size)),
    "all of one colour": _as(lambda image: Image.new("RGB", image.size, (90, 160, 70))),
}
"""By what is strange about them."""


def captions() -> Mapping[str, str]:
    """Return captions by what is strange about them."""
    draw = random.Random(0)
    return {
        "empty": "",
        "blanks alone": " \t ",
        "100,000 words": " ".join(draw.choices(WORDS, k=100_000)),
        "one word of 100,000 letters": "".join(draw.choices(string.ascii_lowercase, k=100_000)),
        "emoji alone": "👟" * 500,
        "10,000 accents on a letter": "e" + "\u0301" * 10_000,
        "right to left": "حذاء أحمر للأطفال",
        "control characters": "a red\x07 shoe\x1b[31m\x7f",
        "line breaks": "a red\nshoe\r\nfor children",
        "quotes and separators": 'a "red", shoe; 3\' wide',
        "markup": "<script>alert(1)</script>&amp;{{ shoe }}",
        "a number": "12345",
        "what pandas reads as missing": "NaN",
        "half of a surrogate pair, replaced": "shoe \ufffd",
    }
