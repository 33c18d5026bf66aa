"""Every reader of the package, with what it is given and what it may answer."""

from __future__ import annotations

import csv
import functools
import html.parser
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import torch
from folders import Folder, write_clusters_folder, write_labels_folder
from mutations import TEXTS, change_bytes, change_json, change_tar, change_tensors, change_text, json_bytes
from PIL import Image

from clip_negatives import registry
from clip_negatives.anchors import AnchorLoss
from clip_negatives.artifacts import ClustersFolder, read_clusters
from clip_negatives.atomic import write_tensors
from clip_negatives.cli import printable
from clip_negatives.compare.methods import Method
from clip_negatives.compare.output import cost_table, ranks_table
from clip_negatives.compare.queries import NAME, read_queries
from clip_negatives.compare.study import FIGURES, _summarise, read_run
from clip_negatives.dataset import CsvPairs, Sample, TarPairs
from clip_negatives.dataset.places import places_of
from clip_negatives.dataset.source import read_image, read_small_image
from clip_negatives.errors import ArtifactError, ClipNegativesError, DataError, InputError, PluginError
from clip_negatives.extra_texts import Captions
from clip_negatives.generate import generate
from clip_negatives.integrations.loss_state import read_state
from clip_negatives.integrations.open_clip.checkpoints import load_checkpoint
from clip_negatives.labels import read_labels
from clip_negatives.report.album import Picture, images_of
from clip_negatives.report.inspection.tables import origin
from clip_negatives.report.page import Table, environment
from clip_negatives_parallel_kmeans.checkpoint import Checkpoint, State
from clip_negatives_parallel_kmeans.ranks import Ranks


@dataclass(frozen=True)
class Reader:
    """Hold how a reader is tried.

    Attributes:
        what: what is changed, for the table.
        errors: what it may raise; all else is a loss.
        make: makes an input: its kind, which is the ending of its file in the corpus, and its bytes.
        read: reads it, uses what it was given, makes sure that nothing is left behind, and tells whether it was left aside.
    """

    what: str
    errors: tuple[type[ClipNegativesError], ...]
    make: Callable[[Random], tuple[str, bytes]]
    read: Callable[[str, bytes], bool | None]

    @property
    def promise(self) -> str:
        """Return what it may do, for the table."""
        names = [error.__name__ for error in self.errors]
        return f"read, or {' or '.join(names)}" if names else "read, or left aside and made again"


def use(folder: ClustersFolder, kind: str) -> None:
    """Use what was read as samplers, weightings and reports do, as far as it can have come from the file that was changed."""
    clusters = folder.clusters
    for side, table in ((clusters.image, clusters.image_similarity), (clusters.text, clusters.text_similarity)):
        assert int(side.sizes().min()) > 0
        assert bool((side.centroids[side.labels].isfinite()).all())
        assert bool((table.abs() < 1.001).all())
    if kind.endswith("samples.parquet"):
        captions = Captions(folder.samples)
        assert len(captions[:]) == len(captions) == clusters.n_samples
        json.dumps(folder.samples.to_pylist())
        images = images_of(folder, None)
        assert images is None or list(images([0], 8)) == [None]
    elif kind.endswith("json"):
        origin(folder)
    elif kind.endswith("broken.parquet"):
        json.dumps(folder.broken.to_pylist())


def _clusters(scratch: Path, what: str, *names: str) -> Reader:
    write_clusters_folder(scratch / "clusters")
    folder = Folder(scratch / "clusters", "manifest.json")

    def read(kind: str, content: bytes) -> None:
        folder.take(kind, content)
        try:
            use(read_clusters(folder.path), kind)
        finally:
            folder.check()

    return Reader(what, (ArtifactError,), lambda rng: folder.make(rng.choice(names), rng), read)


def labels(scratch: Path) -> Reader:
    """Return the reader of labels folders."""
    write_labels_folder(scratch / "labels")
    folder = Folder(scratch / "labels", "labels.json")
    shards = [row["shard"] for row in pq.read_table(scratch / "labels" / "shards.parquet").to_pylist()]

    def read(kind: str, content: bytes) -> None:
        folder.take(kind, content)
        try:
            found = read_labels(folder.path)
            found.shards.check(shards)
            for shard in shards:
                for image, text in found.shards.of(shard).values():
                    assert 0 <= image < found.clusters.image.n_clusters
                    assert 0 <= text < found.clusters.text.n_clusters
        finally:
            folder.check()

    return Reader(
        "any file of a labels folder changed",
        (ArtifactError,),
        lambda rng: folder.make(rng.choice(list(folder.whole)), rng),
        read,
    )


def pairs(scratch: Path) -> Reader:
    """Return what writes incorrect pairs: of a changed folder there are all of them, or no file at all."""
    write_clusters_folder(scratch / "clusters")
    folder, output = Folder(scratch / "clusters", "manifest.json"), scratch / "out" / "pairs.parquet"
    output.parent.mkdir()
    names = ("manifest.json", "clusters.safetensors", "samples.parquet")

    def read(kind: str, content: bytes) -> None:
        folder.take(kind, content)
        try:
            count = generate(folder.path, output)
            assert pq.read_metadata(output).num_rows == count > 0
            output.unlink()
        finally:
            folder.check()
            assert not any(output.parent.iterdir())

    return Reader(
        "a file of the clusters folder changed",
        (ArtifactError, InputError),
        lambda rng: folder.make(rng.choice(names), rng),
        read,
    )


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


def options(scratch: Path) -> Reader:
    """Return the reader of ``name:key=value,...``."""
    host, kinds = registry.default_registry(), ("clusterer", "loss_weighting")
    known = {kind: host.items(kind) for kind in kinds}

    def make(rng: Random) -> tuple[str, bytes]:
        kind = rng.choice(kinds)
        item = rng.choice(known[kind])
        numbers = (
            "0",
            "-1",
            "1",
            "2",
            "1e3",
            "nan",
            "inf",
            "-inf",
            "1" * 30,
            "1" * 5000,
            "1_0",
            "٣",
            "0.5",
            "none",
            "true",
            "image",
            "",
        )
        given = [
            f"{option.name}={rng.choice((str(option.default), *numbers))}" for option in item.options if rng.random() < 0.4
        ]
        spec = f"{item.name}:{','.join(given)}"
        return kind, (change_text(spec, rng) if rng.random() < 0.6 else spec).encode("utf-8", "surrogatepass")

    def read(kind: str, content: bytes) -> None:
        spec = content.decode("utf-8", "surrogatepass")
        host.resolve(kind, spec)
        registry.create(kind, spec)

    return Reader("names, keys, values and separators changed", (PluginError, InputError), make, read)


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


def results(scratch: Path) -> Reader:
    """Return the readers of what a comparison keeps: what does not fit is made again."""
    identity, outcome = "i", dict.fromkeys(FIGURES, 0.5)
    spec = {"name": "in_batch", "sampler": "in_batch", "weighting": "uniform", "temperature": None}
    run = {
        "method": spec,
        "seed": 0,
        "steps": 3,
        "queries": 2,
        "losses": [1.0, 2.0],
        "false_negatives_truth": "text",
        **outcome,
    }
    run |= {f"chance_rank_{k}": 0.1 for k in (1, 5, 10)}
    write_tensors(
        {"rank": torch.tensor([1, 2], dtype=torch.int32), "top": torch.tensor([0, 1], dtype=torch.int32)}, scratch / NAME
    )
    queries = (scratch / NAME).read_bytes()

    def make(rng: Random) -> tuple[str, bytes]:
        if rng.random() < 0.4:
            return NAME, change_tensors(queries, rng)
        return "result.json", json_bytes(change_json({"identity": identity, "run": run}, rng), rng)

    def read(kind: str, content: bytes) -> bool:
        (scratch / kind).write_bytes(content)
        if kind == NAME:
            return read_queries(scratch) is None
        found = read_run(scratch / kind, identity)
        if found is not None:
            name = found["method"]["name"]
            comparison = _summarise(
                {"seeds": 1},
                [found, run],
                [
                    Method("in_batch", "in_batch", "uniform"),
                    *([Method(name, "in_batch", "uniform")] if name != "in_batch" else []),
                ],
            )
            ranks_table(comparison), cost_table(comparison)
        return found is None

    return Reader("results and answers of finished runs changed", (), make, read)


class _Remembering(AnchorLoss):
    """A loss that remembers something of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))


def checkpoints(scratch: Path) -> Reader:
    """Return the readers of checkpoints: of open_clip's, of the loss's, and of k-means'."""
    ranks, identity = Ranks(), {"n": 4}
    Checkpoint(scratch, identity, ranks).save(State.at(torch.ones(2, 3)))
    write_tensors({"seen": torch.ones(4)}, scratch / "loss.safetensors")
    torch.save(
        {"epoch": 1, "name": "run", "state_dict": {"w": torch.ones(2)}, "optimizer": {"state": {}, "param_groups": []}},
        scratch / "epoch.pt",
    )
    whole = {name: (scratch / name).read_bytes() for name in ("iteration.safetensors", "loss.safetensors", "epoch.pt")}

    def make(rng: Random) -> tuple[str, bytes]:
        name = rng.choice(list(whole))
        return name, (change_bytes if name.endswith(".pt") else change_tensors)(whole[name], rng)

    def read(kind: str, content: bytes) -> None:
        (scratch / kind).write_bytes(content)
        if kind == "epoch.pt":
            load_checkpoint(str(scratch / kind), map_location="cpu")
        elif kind == "loss.safetensors":
            read_state(_Remembering(), scratch / kind)
        else:
            state = Checkpoint(scratch, identity, ranks).load()
            assert state is not None
            assert len(state.centroids) == len(state.seen) == len(state.passed)
            assert state.iteration >= 0 <= state.running < float("inf")

    return Reader("bytes, headers and numbers changed", (ArtifactError,), make, read)


READERS: dict[str, Callable[[Path], Reader]] = {
    "options": options,
    "captions": captions,
    "images": images,
    "tars": tars,
    "csv": table,
    "results": results,
    "checkpoints": checkpoints,
    "manifest": lambda scratch: _clusters(scratch, "values, keys and bytes of manifest.json changed", "manifest.json"),
    "clustering": lambda scratch: _clusters(
        scratch, "headers and numbers of tensors changed", "clusters.safetensors", "features.safetensors"
    ),
    "samples": lambda scratch: _clusters(
        scratch, "columns, rows and bytes of tables changed", "samples.parquet", "broken.parquet"
    ),
    "labels": labels,
    "pairs": pairs,
}
"""Makes a reader, given a folder of its own."""
