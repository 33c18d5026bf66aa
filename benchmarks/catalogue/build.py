"""Build the emoji catalogue: one item (a Unicode emoji) listed by several sellers (art styles).

    python benchmarks/catalogue/build.py                    the part that ships with the package
    python benchmarks/catalogue/build.py --full --size 64   every style, item and skin tone

Needs npm, resvg-py, pillow and pyarrow. The same packages give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image
from sources import EMOJIBASE, PINNED, STYLES, Package

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "src" / "clip_negatives" / "catalogue" / "data"
TEST_STYLE = "twemoji"  # the seller whose listings are held out: gallery and queries of every test
SHIPPED_TONES = {"noto": (1, 3, 5), "noto-v1": (2, 4), "fluent-flat": (1, 3, 5), "fluent": (2, 4)}
"""Skin tones that ship beside the plain pictures, by style; the full build has all five of all styles."""

TRIES = 50  # draws of a text until no other listing has it


def main() -> None:
    """Build and write the catalogue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every skin tone of every style")
    parser.add_argument("--size", type=int, default=32, help="side of the pictures in pixels")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="folder to write catalogue.parquet to")
    parser.add_argument("--packages", type=Path, default=ROOT / ".cache" / "catalogue", help="where packages are kept")
    arguments = parser.parse_args()
    packages = {name: Package(name, arguments.packages) for name in PINNED}
    rows = listings(packages, full=arguments.full)
    with Pool() as pool:
        pictures = pool.map(draw, [(row.pop("svg"), arguments.size) for row in rows], chunksize=64)
    texts(rows)
    mark_unseen(rows)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / "catalogue.parquet"
    # A dictionary of compressed pictures would make the file larger.
    table = pa.table({**columns, "image": pictures})
    pq.write_table(table, file, compression="zstd", use_dictionary=list(columns), row_group_size=len(rows))
    # In the format of sha256sum, which checks it with --check.
    file.with_suffix(".parquet.sha256").write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
    print(f"{file}: {len(rows)} listings, {len(set(columns['item']))} items, {file.stat().st_size / 1e6:.2f} MB")


def listings(packages: dict[str, Package], *, full: bool) -> list[dict[str, Any]]:
    """Return one row for each picture, without its text, in a fixed order."""
    emoji = [entry for entry in packages[EMOJIBASE].json("en/data.json") if "group" in entry and entry.get("tags")]
    names = packages[EMOJIBASE].json("meta/groups.json")
    by_name = {style.name: style for style in STYLES}
    rows = []
    for style in STYLES:
        icons = packages[style.package].json("icons.json")
        characters = packages[by_name[style.names_of].package].json("chars.json")
        tones = range(1, 6) if full else SHIPPED_TONES.get(style.name, ())
        for entry in emoji:
            for hexcode, tone in variants(entry, tones):
                svg = picture(icons, characters, hexcode)
                if svg is not None:
                    row = {"key": f"{style.name}-{hexcode.lower()}", "item": entry["hexcode"].lower(), "style": style.name}
                    row |= {name: names[f"{name}s"][str(entry[name])] for name in ("group", "subgroup")}
                    row |= {"tone": tone, "split": "test" if style.name == TEST_STYLE else "train"}
                    rows.append({**row, "label": entry["label"], "tags": entry["tags"], "svg": svg})
    return rows


def variants(entry: dict[str, Any], tones: Any) -> Iterator[tuple[str, int]]:
    """Yield the plain picture and those of one skin tone; skip pictures of two people with two tones."""
    yield entry["hexcode"], 0
    for skin in entry.get("skins", ()):
        if isinstance(skin["tone"], int) and skin["tone"] in tones:
            yield skin["hexcode"], skin["tone"]


def picture(icons: dict[str, Any], characters: dict[str, str], hexcode: str) -> str | None:
    """Return the SVG of a character, or None if the style has none."""
    plain = hexcode.lower()
    name = characters.get(plain) or characters.get(plain.replace("-fe0f", ""))
    aliases = icons.get("aliases", {})
    while name in aliases and set(aliases[name]) <= {"parent"}:
        name = aliases[name]["parent"]
    if name not in icons["icons"]:
        return None
    icon = icons["icons"][name]
    box = [icon.get(key, icons.get(key, default)) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'


def draw(job: tuple[str, int]) -> bytes:
    """Return a picture as WebP, on white, size x size."""
    svg, size = job
    # Thin lines survive if the picture is drawn larger and scaled down.
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=4 * size, height=4 * size, background="#ffffff", skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(drawn))).convert("RGB")
    square = Image.new("RGB", (4 * size, 4 * size), "white")
    square.paste(image, ((4 * size - image.width) // 2, (4 * size - image.height) // 2))
    stream = io.BytesIO()
    square.resize((size, size), Image.Resampling.LANCZOS).save(stream, "WEBP", quality=70, method=6)
    return stream.getvalue()


def texts(rows: list[dict[str, Any]]) -> None:
    """Replace label and tags of each listing by a text: the label among some tags, like a seller's title.

    Skin tones are left out, so that listings that differ in the tone only are near-duplicates. A training listing never has the
    text of a test listing. Two training listings share a text only if their item has too few tags.
    """
    taken: set[str] = set()
    tested: set[str] = set()
    for row in sorted(rows, key=lambda row: row["split"]):  # test before train
        label, tags = row.pop("label"), row.pop("tags")
        draws = random.Random(hashlib.sha256(row["key"].encode()).digest())
        for attempt in range(10 * TRIES):
            words = draws.sample(tags, draws.randint(1, min(4, len(tags))))
            words.insert(draws.randint(0, len(words)), label)
            row["text"] = ", ".join(words)
            if row["text"] not in (taken if attempt < TRIES else tested):
                break
        taken.add(row["text"])
        if row["split"] == "test":
            tested.add(row["text"])


def mark_unseen(rows: list[dict[str, Any]]) -> None:
    """Move test listings whose item no other seller lists to the split "unseen", a harder test."""
    trained = {row["item"] for row in rows if row["split"] == "train"}
    for row in rows:
        if row["split"] == "test" and row["item"] not in trained:
            row["split"] = "unseen"


if __name__ == "__main__":
    main()
