"""Readers of Debian's packages, on a few files with the same layout."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("resvg_py")
pytest.importorskip("bs4")
sys.path.insert(0, str(Path(__file__).parent))
import packages

SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" width="1in" height="0.5in"><rect width="1in" height="1in" fill="#f00"/></svg>'
PART = """<module><title> Resistor </title><description>&lt;html&gt;&lt;style&gt;p {{}}&lt;/style&gt;
&lt;p&gt;220 &amp;amp; {more}&lt;/p&gt;</description>
<views><breadboardView><layers image="breadboard/{image}.svg"/></breadboardView></views></module>"""


def test_parts_have_title_description_and_picture(tmp_path: Path) -> None:
    """Markup and style sheets are dropped; a part without a picture is skipped."""
    home = tmp_path / "usr" / "share" / "fritzing" / "parts"
    (home / "core").mkdir(parents=True)
    (home / "svg" / "core" / "breadboard").mkdir(parents=True)
    (home / "svg" / "core" / "breadboard" / "r.svg").write_text(SQUARE)
    (home / "core" / "a.fzp").write_text(PART.format(more="ohm", image="r"))
    (home / "core" / "b.fzp").write_text(PART.format(more="ohm", image="missing"))
    assert list(packages.parts(tmp_path)) == [("a", "Resistor: 220 & ohm", SQUARE.encode())]


def test_stamps_have_the_first_line(tmp_path: Path) -> None:
    """The first line is the English one."""
    home = tmp_path / "usr" / "share" / "tuxpaint" / "stamps" / "animals"
    home.mkdir(parents=True)
    (home / "cat.txt").write_text("A cat.\nde.utf8=Eine Katze.\n")
    (home / "cat.svg").write_text(SQUARE)
    (home / "dog.txt").write_text("A dog without a picture.\n")
    assert list(packages.stamps(tmp_path)) == [("animals/cat", "A cat.", SQUARE.encode())]


def test_pictures_are_drawn_on_white() -> None:
    """Inches depend on the resolution; broken pictures are skipped."""
    picture = packages.drawn(SQUARE.encode())
    assert picture is not None
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == (packages.SIZE, packages.SIZE)
        assert image.getpixel((packages.SIZE // 2, packages.SIZE // 2)) == (255, 0, 0)
        assert image.getpixel((0, 0)) == (255, 255, 255)
    assert packages.drawn(b"no picture") is None


def test_groups_share_a_picture_or_a_text_in_turn() -> None:
    """Groups are transitive."""
    found = packages.alike([b"p", b"p", b"q", b"r"], ["x", "y", "y", "z"])
    assert found[0] == found[1] == found[2] != found[3]


def test_splits_are_settled_by_name() -> None:
    """A name determines the split, and the splits have their shares."""
    names = [f"part-{number}" for number in range(2000)]
    splits = [packages.split_of(name) for name in names]
    assert splits == [packages.split_of(name) for name in names]
    for split, share in packages.SHARES.items():
        assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.04)
