"""Measure how fast each format is read: python benchmarks/scale/reading.py [--small].

Each format has the same pairs: JPEGs of 256 x 256 pixels made from the catalogue, with captions. This package and a plain loop
over pandas, datasets or webdataset read them in turn, in changing order. The ratio of wall-clock times is plain / ours: the
median of several pairs of runs, and the ratio of the fastest runs, which other work on the machine disturbs least.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

N, SMALL, SIDE, PAIRS = 2_000, 64, 256, 15  # samples, samples of a small run, pixels of a side, pairs of runs

Reader = Callable[[], Iterator[tuple[Any, str]]]  # yields images in RGB and captions


def main() -> None:
    """Measure, and write the result file."""
    from conftest import machine
    from run import result_file, write_json

    small = "--small" in sys.argv
    n = SMALL if small else N
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), n)
        rows = [measure(name, *readers, n) for name, readers in readers_of(Path(folder)).items()]
    result = {
        **machine(),
        "measured": "samples per second with this package and with a plain loop, and seconds of the loop / seconds of ours",
        "n_samples": n,
        "side": SIDE,
        "rows": rows,
    }
    print(json.dumps(rows, indent=1))
    print(f"Results: {write_json(result_file('scale-reading.json', small=small), result)}")


def write_data(folder: Path, n: int) -> None:
    """Write the same pairs in every format."""
    import datasets
    import pandas as pd
    import webdataset

    from clip_negatives import catalogue

    listings = catalogue.load("train")
    (folder / "images").mkdir()
    paths, texts, contents = [], [], []
    for row in range(n):
        stream = io.BytesIO()
        listings.image(row % len(listings)).convert("RGB").resize((SIDE, SIDE)).save(stream, "JPEG", quality=90)
        contents.append(stream.getvalue())
        paths.append(str(folder / "images" / f"{row}.jpg"))
        texts.append(f"{listings.column('text')[row % len(listings)]} {row}")
        Path(paths[-1]).write_bytes(contents[-1])
    frame = pd.DataFrame({"image": paths, "text": texts})
    frame.to_csv(folder / "pairs.csv", index=False)
    frame.to_parquet(folder / "pairs.parquet")
    frame.to_json(folder / "pairs.jsonl", orient="records", lines=True)
    frame.assign(file_name=[Path(path).name for path in paths])[["file_name", "text"]].to_csv(
        folder / "images" / "metadata.csv", index=False
    )
    rows = {"image": [{"bytes": content, "path": None} for content in contents], "text": texts}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved")
    with webdataset.TarWriter(str(folder / "pairs.tar")) as tar:
        for row, (content, text) in enumerate(zip(contents, texts, strict=True)):
            tar.write({"__key__": f"{row:06d}", "jpg": content, "txt": text})


def readers_of(folder: Path) -> dict[str, tuple[Reader, Reader]]:
    """Return our reader and the plain one of each format."""
    import datasets
    import pandas as pd
    import webdataset
    from PIL import Image

    def plain(read: Callable[[], pd.DataFrame], image: str, base: Path) -> Reader:
        def samples() -> Iterator[tuple[Any, str]]:
            frame = read()
            for path, text in zip(frame[image], frame["text"], strict=True):
                yield Image.open(base / path).convert("RGB"), text

        return samples

    def plain_dataset() -> Iterator[tuple[Any, str]]:
        for row in datasets.load_from_disk(str(folder / "saved")):
            yield row["image"].convert("RGB"), row["text"]

    def plain_tar() -> Iterator[tuple[Any, str]]:
        tars = webdataset.WebDataset(str(folder / "pairs.tar"), shardshuffle=False)
        yield from tars.decode("pilrgb").to_tuple("jpg", "txt")

    csv, jsonl, parquet = (folder / f"pairs.{ending}" for ending in ("csv", "jsonl", "parquet"))
    images = folder / "images"
    return {
        "csv": (ours(csv), plain(lambda: pd.read_csv(csv), "image", folder)),
        "jsonl": (ours(jsonl), plain(lambda: pd.read_json(jsonl, lines=True), "image", folder)),
        "parquet": (ours(parquet), plain(lambda: pd.read_parquet(parquet), "image", folder)),
        "imagefolder": (ours(images), plain(lambda: pd.read_csv(images / "metadata.csv"), "file_name", images)),
        "datasets": (ours(folder / "saved"), plain_dataset),
        "webdataset": (ours(folder / "pairs.tar"), plain_tar),
    }


def ours(location: Path) -> Reader:
    """Return the reader of this package, as `prepare` reads."""

    def samples() -> Iterator[tuple[Any, str]]:
        from clip_negatives.dataset import Sample, open_pairs

        for part in open_pairs(location).parts():
            for sample in part.samples():
                if isinstance(sample, Sample):
                    yield sample.image, sample.text

    return samples


def measure(name: str, our_reader: Reader, plain_reader: Reader, n: int) -> dict[str, Any]:
    """Return the row of a format."""
    assert [text for _, text in our_reader()] == [text for _, text in plain_reader()]  # warms both up
    seconds: dict[Reader, list[float]] = {our_reader: [], plain_reader: []}
    for pair in range(PAIRS):
        for reader in (our_reader, plain_reader)[:: 1 if pair % 2 else -1]:
            began = time.perf_counter()
            assert sum(1 for _ in reader()) == n
            seconds[reader].append(time.perf_counter() - began)
    ratios = [theirs / mine for mine, theirs in zip(seconds[our_reader], seconds[plain_reader], strict=True)]
    return {
        "format": name,
        "ours_per_second": round(n / statistics.median(seconds[our_reader])),
        "plain_per_second": round(n / statistics.median(seconds[plain_reader])),
        "ratio": round(statistics.median(ratios), 3),
        "lowest_ratio": round(min(ratios), 3),
        "ratio_of_fastest": round(min(seconds[plain_reader]) / min(seconds[our_reader]), 3),
    }


if __name__ == "__main__":
    main()
