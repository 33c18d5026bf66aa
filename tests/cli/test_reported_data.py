"""Data of which users reported trouble, through the commands: each gives the right number, or says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clip_negatives.cli import main
from tests.pairs import png, write_tar


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a temporary folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))


def run(*arguments: Any, code: int = 0) -> Result:
    """Run a command and make sure of its exit code."""
    shown = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert shown.exit_code == code, shown.output
    return shown


def pictures(n: int) -> list[Image.Image]:
    """Return n different pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def write_rows(file: str, texts: list[str], pictured: list[int], extra: dict[str, list[str]] | None = None) -> None:
    """Write a table; row i has a text and the picture with number ``pictured[i]``."""
    Path("img").mkdir(exist_ok=True)
    for number, picture in enumerate(pictures(max(pictured) + 1)):
        picture.save(f"img/{number}.png")
    columns = {"filepath": [f"img/{number}.png" for number in pictured], "title": texts, **(extra or {})}
    lines = ["\t".join(columns), *("\t".join(row) for row in zip(*columns.values(), strict=True))]
    Path(file).write_text("\n".join(lines) + "\n")


def members(
    texts: list[str], fields: list[dict[str, Any]] | None = None, names: Iterator[str] | None = None
) -> dict[str, bytes]:
    """Return the files of a tar with a picture, a text and a json for each sample."""
    names = names or (f"{row:05d}" for row in range(len(texts)))
    files: dict[str, bytes] = {}
    for row, (name, text, picture) in enumerate(zip(names, texts, pictures(len(texts)), strict=True)):
        files |= {f"{name}.png": png(picture), f"{name}.txt": text.encode()}
        files |= {f"{name}.json": json.dumps(fields[row]).encode()} if fields else {}
    return files


@pytest.mark.parametrize(
    ("texts", "pictured", "clusters"),
    [
        ([f"scene {row % 10}" for row in range(200)], list(range(200)), "25 image clusters, 10 text clusters"),
        ([f"caption {row}" for row in range(200)], [row // 10 for row in range(200)], "20 image clusters, 25 text clusters"),
    ],
    ids=["few captions", "few pictures"],
)
def test_few_different_captions_or_pictures(texts: list[str], pictured: list[int], clusters: str) -> None:
    write_rows("pairs.tsv", texts, pictured)
    assert run("prepare", "pairs.tsv", "out").stdout == f"out: 200 pairs, {clusters}\n"


def test_more_clusters_than_different_captions_are_refused() -> None:
    write_rows("pairs.tsv", [f"scene {row % 10}" for row in range(64)], list(range(64)))
    refused = run("prepare", "pairs.tsv", "out", "--clusterer", "kmeans:n_clusters=30", code=2)
    assert "text" in refused.stderr
    assert "--text-clusterer" in refused.stderr


def test_null_in_a_json_is_no_group() -> None:
    skus = [None if row % 4 == 0 else f"s{row // 2}" for row in range(32)]
    write_tar(Path("pairs.tar"), members([f"text {row}" for row in range(32)], [{"sku": sku} for sku in skus]))
    write_rows("pairs.tsv", [f"text {row}" for row in range(32)], list(range(32)), {"sku": [sku or "" for sku in skus]})
    shares = []
    for data in ("pairs.tar", "pairs.tsv"):
        run("prepare", data, f"out-{data}", "--group-column", "sku", "--clusterer", "kmeans:n_clusters=3")
        run("meter", f"out-{data}", "--batch-size", "16", "--json", f"{data}.json")
        suspects = json.loads(Path(f"{data}.json").read_text())["suspects"]
        shares.append(next(suspect["share"] for suspect in suspects if suspect["kind"] == "same group"))
    pairs_of_a_group = 2 * 8  # of 32 x 31 ordered pairs: rows 2 and 3, 6 and 7, ...
    assert shares == [pytest.approx(pairs_of_a_group / (32 * 31))] * 2


def test_missing_captions_are_no_text_in_common() -> None:
    missing = ["", "", "", "", "NA", "None", "null"]
    write_rows("holes.tsv", [*missing, *(f"text {row}" for row in range(33))], list(range(40)))
    run("prepare", "holes.tsv", "out", "--clusterer", "kmeans:n_clusters=3")
    run("meter", "out", "--batch-size", "16", "--json", "reading.json")
    suspects = json.loads(Path("reading.json").read_text())["suspects"]
    assert next(suspect["share"] for suspect in suspects if suspect["kind"] == "same text") == 0


def test_joined_data_sets_with_equal_keys() -> None:
    for name in ("one", "two"):
        Path(name).mkdir()
        for shard in range(2):
            write_tar(Path(name) / f"{shard:05d}.tar", members([f"{name} {shard} {row}" for row in range(16)]))
    shown = run("prepare", "one/{00000..00001}.tar::two/{00000..00001}.tar", "out")
    assert shown.stdout.startswith("out: 64 pairs, ")


def test_a_dot_in_a_name_loses_a_sample_and_says_so() -> None:
    names = (f"000v{row}.0" if row < 8 else f"{row:05d}" for row in range(32))
    write_tar(Path("dots.tar"), members([f"text {row}" for row in range(32)], names=names))
    shown = run("prepare", "dots.tar", "out")
    assert shown.stdout.startswith("out: 24 pairs, ")
    assert "8: no .txt and no image, only .0.png, .0.txt (first: 000v0)" in shown.stderr
    assert len(pq.read_table("out/broken.parquet")) == 8


def test_captions_in_a_cls_or_in_the_json() -> None:
    texts = [f"text {row}" for row in range(16)]
    files = members(texts, [{"caption": text} for text in texts])
    write_tar(Path("cls.tar"), {name.replace(".txt", ".cls"): data for name, data in files.items() if ".json" not in name})
    write_tar(Path("json.tar"), {name: data for name, data in files.items() if ".txt" not in name})
    for tar, key, found in (("cls.tar", "cls", ".png, .cls"), ("json.tar", "caption", ".png, .json (fields: caption)")):
        refused = run("prepare", tar, "none", code=2)
        assert found in refused.stderr
        assert "--caption-key" in refused.stderr
        run("prepare", tar, f"out-{key}", "--caption-key", key)
        assert pq.read_table(f"out-{key}/samples.parquet")["text"].to_pylist() == texts
