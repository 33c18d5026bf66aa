"""A few real listings of the catalogue, written as training data."""

from __future__ import annotations

import csv
import functools
import importlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from clip_negatives import catalogue

Listing = tuple[str, str, str, Image.Image]
"""Key, text, item and picture."""


@functools.cache
def listings(n: int) -> tuple[Listing, ...]:
    """Return n listings of the train split, several of each item."""
    whole = catalogue.load("train")
    keys, texts, items = whole.column("key"), whole.column("text"), whole.column("item")
    rows = sorted(range(len(whole)), key=lambda row: (items[row], row))[:n]
    return tuple((keys[row], texts[row], items[row], whole.image(row)) for row in rows)


def export(folder: Path, split: str, rows: Sequence[int], **options: Any) -> Path:
    """Export a few listings of a split as `catalogue.export` exports all, which takes many seconds."""
    some = catalogue.Catalogue(catalogue.load(split).table.take(list(rows)))
    module = importlib.import_module("clip_negatives.catalogue.export")
    with mock.patch.object(module, "load", return_value=some):
        return catalogue.export(folder, split=split, **options)


def write_csv(folder: Path, n: int = 64, *, separator: str = "\t") -> Path:
    """Write ``pairs.csv`` and its images; columns filepath, title, item."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
        writer.writerow(["filepath", "title", "item"])
        for key, text, item, image in listings(n):
            image.save(images / f"{key}.png")
            writer.writerow([images / f"{key}.png", text, item])
    return folder / "pairs.csv"


def write_table(folder: Path, kind: str, n: int = 64) -> Path:
    """Write the listings of `write_csv` in another format, with the columns image_path or image, caption and item."""
    import datasets

    frame = pd.read_csv(write_csv(folder, n), sep="\t").set_axis(["image_path", "caption", "item"], axis=1)
    file = folder / f"pairs.{kind}"
    if kind in ("csv", "csv.gz"):
        frame.to_csv(file, index=False, encoding="utf-8-sig")
    elif kind == "parquet":
        frame.to_parquet(file)
    elif kind == "jsonl":
        frame.to_json(file, orient="records", lines=True)
    elif kind == "imagefolder":
        names = [Path(path).name for path in frame["image_path"]]
        frame.drop(columns="image_path").assign(file_name=names).to_csv(folder / "images" / "metadata.csv", index=False)
        return folder / "images"
    else:
        rows = {name: list(frame[name]) for name in ("caption", "item")}
        rows["image"] = [{"bytes": Path(path).read_bytes(), "path": None} for path in frame["image_path"]]
        features = {"caption": datasets.Value("string"), "item": datasets.Value("string"), "image": datasets.Image()}
        dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        if kind == "datasets":
            dataset.save_to_disk(file)
        else:
            file = folder / "images.parquet"
            dataset.to_parquet(file)
    return file


def write_clip_retrieval(
    folder: Path, features: Mapping[str, NDArray[Any]], columns: Mapping[str, Sequence[str]], *, parts: int = 1
) -> Path:
    """Write image and text features, and columns of their samples, as clip-retrieval does."""
    names = {"image": "img_emb", "text": "text_emb"}
    for name in (*names.values(), "metadata"):
        (folder / name).mkdir(parents=True)
    frame = pd.DataFrame(columns)
    for part, rows in enumerate(np.array_split(np.arange(len(frame)), parts)):
        frame.iloc[rows].to_parquet(folder / "metadata" / f"metadata_{part}.parquet")
        for side, name in names.items():
            np.save(folder / name / f"{name}_{part}.npy", features[side][rows])
    return folder


def png(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    """Write a tar with these members, in order."""
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def write_tars(folder: Path, n: int = 64, *, shards: int = 2) -> str:
    """Write the listings of `write_csv` as webdataset tars and return their names with braces."""
    some = listings(n)
    size = -(-n // shards)
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for key, text, item, image in some[shard * size : (shard + 1) * size]:
            members |= {
                f"{key}.png": png(image),
                f"{key}.txt": text.encode(),
                f"{key}.json": json.dumps({"item": item}).encode(),
            }
        write_tar(folder / f"pairs-{shard:06d}.tar", members)
    return str(folder / f"pairs-{{000000..{shards - 1:06d}}}.tar")
