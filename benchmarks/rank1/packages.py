"""Build two more data sets of the study from Debian's packages: python benchmarks/rank1/packages.py [parts] [stamps].

    parts    electronic parts of fritzing-parts (CC BY-SA 3.0): drawings, titles, descriptions; the strongest near-duplicates
    stamps   tuxpaint-stamps-default (GPL 2): photographs and drawings, one sentence each; few near-duplicates

Needs apt-get and dpkg-deb (Debian, Ubuntu), resvg-py and beautifulsoup4. Nothing of the packages is shipped with this one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from bs4 import BeautifulSoup
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from studies import CACHE

SIZE = 128  # side of the pictures in pixels
DPI = 96  # resolution of parts that are measured in inches or millimetres
WORDS = 40  # maximum number of words of a description; MiniLM reads hardly more
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
"""Share of the groups in each split; listings of one picture or one text are in one split."""

Listing = tuple[str, str, bytes]
"""Key, text and SVG or PNG."""


def parts(root: Path) -> Iterator[Listing]:
    """Yield the core parts that have a picture."""
    home = root / "usr" / "share" / "fritzing" / "parts"
    for file in sorted((home / "core").glob("*.fzp")):
        module = ET.parse(file).getroot()
        layers = module.find("views/breadboardView/layers")
        image = home / "svg" / "core" / (layers.get("image", "") if layers is not None else "")
        page = BeautifulSoup(f"<p>{module.findtext('description') or ''}</p>", "html.parser")
        for style in page(["style", "head"]):
            style.decompose()
        words = page.get_text(" ").split()[:WORDS]
        text = ": ".join(filter(None, ((module.findtext("title") or "").strip(), " ".join(words))))
        if image.is_file():
            yield file.stem, text, image.read_bytes()


def stamps(root: Path) -> Iterator[Listing]:
    """Yield the stamps with an English sentence."""
    home = root / "usr" / "share" / "tuxpaint" / "stamps"
    for file in sorted(home.rglob("*.txt")):
        sentence = file.read_text(encoding="utf-8").split("\n", 1)[0].strip()
        image = next((path for ending in (".png", ".svg") if (path := file.with_suffix(ending)).is_file()), None)
        if image is not None and sentence:
            yield str(file.relative_to(home).with_suffix("")), sentence, image.read_bytes()


SOURCES = {
    "parts": ("fritzing-parts", parts, "0.9.6~unreleased-1"),
    "stamps": ("tuxpaint-stamps-default", stamps, "2022.06.04-1"),
}
"""Package, its reader, and the version of the committed results."""


def fetch(package: str, folder: Path) -> tuple[Path, str]:
    """Return the folder of the unpacked package and its version; it is fetched once."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
    deb = next(iter(sorted(folder.glob(f"{package}_*.deb"))))
    target = folder / deb.stem
    if not target.exists():
        subprocess.run(["dpkg-deb", "-x", str(deb), str(target)], check=True)
    asked = subprocess.run(["dpkg-deb", "-f", str(deb), "Version"], check=True, capture_output=True, text=True)
    return target, asked.stdout.strip()


def drawn(picture: bytes) -> bytes | None:
    """Return a picture as PNG on white, SIZE x SIZE, or None if it cannot be drawn."""
    try:
        if b"<svg" in picture:
            picture = bytes(resvg_py.svg_to_bytes(svg_string=picture.decode(), dpi=DPI, skip_system_fonts=True))
        with Image.open(io.BytesIO(picture)) as opened:
            image = opened.convert("RGBA")
    except (ValueError, OSError) as error:
        print(f"left out: {error}")
        return None
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIZE, SIZE), "white")
    square.alpha_composite(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    stream = io.BytesIO()
    square.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def alike(pictures: list[bytes], texts: list[str]) -> list[int]:
    """Return the group of each listing; listings with an equal picture or text are in one, transitively."""
    n = len(texts)
    first: dict[bytes | str, int] = {}
    pairs = enumerate(zip(pictures, texts, strict=True))
    links = [(row, first.setdefault(value, row)) for row, pair in pairs for value in pair]
    rows, columns = zip(*links, strict=True)
    graph = coo_array(([1] * len(links), (rows, columns)), shape=(n, n))
    return connected_components(graph, directed=False)[1].tolist()


def split_of(group: str) -> str:
    """Return the split of a group, which depends on its name alone."""
    place, total = int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12, 0.0
    for split, share in SHARES.items():
        total += share
        if place < total:
            return split
    return "test"


def build(name: str, folder: Path) -> Path:
    """Write ``{name}.parquet``, with the columns of the emoji catalogue that the study reads."""
    package, read, expected = SOURCES[name]
    root, version = fetch(package, folder)
    if version != expected:
        print(f"{package} is {version}; the committed results are of {expected}")
    rows = [(key, text, picture) for key, text, raw in read(root) if (picture := drawn(raw)) is not None]
    keys, texts, pictures = (list(column) for column in zip(*rows, strict=True))
    groups = alike(pictures, texts)
    items = [keys[groups.index(group)] for group in groups]
    file = folder / f"{name}.parquet"
    columns = {"key": keys, "item": items, "text": texts, "split": [split_of(item) for item in items], "image": pictures}
    pq.write_table(pa.table(columns), file)
    print(f"{file}: {len(keys)} listings, {len(set(items))} groups")
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="|".join(SOURCES), help="default: all")
    parser.add_argument("--folder", type=Path, default=CACHE)
    options = parser.parse_args()
    if not set(options.names) <= set(SOURCES):
        parser.error(f"unknown data set in {' '.join(options.names)} (known: {', '.join(SOURCES)})")
    for name in options.names or SOURCES:
        build(name, options.folder)
