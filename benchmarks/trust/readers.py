"""Every reader of the package as a fuzz target: strategies of inputs, and a function that reads one."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bs4 import BeautifulSoup
from edits import bytes_of, changed_files, pick, tar_of, text_of, texts
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from clip_negatives import AnchorLoss, Clustering, Clusters, Columns, read_clusters, registry, similarity, write_clusters
from clip_negatives.batches.extras import Captions
from clip_negatives.compare.output import results_table
from clip_negatives.compare.queries import NAME, Queries, read_queries, write_queries
from clip_negatives.compare.results import FIGURES, read_run, summarised
from clip_negatives.dataset import Sample, TarPairs, open_table
from clip_negatives.dataset.archive import DAMAGED, raw_samples
from clip_negatives.dataset.images import read_image, read_small_image
from clip_negatives.dataset.urls import ShardStream
from clip_negatives.errors import ArtifactError, ClipNegativesError, DataError, InputError, PluginError
from clip_negatives.integrations.open_clip.tiny import tiny_model
from clip_negatives.integrations.open_clip.untrusted import load_checkpoint
from clip_negatives.pipelines.generate import generate
from clip_negatives.printing import printable
from clip_negatives.report.album import Picture, images_of
from clip_negatives.report.page import Table, environment
from clip_negatives.storage.atomic import digest
from clip_negatives.storage.clusters_folder import BROKEN
from clip_negatives.storage.labels_folder import read_labels, write_labels
from clip_negatives.storage.manifest import CLUSTERS_FOLDER, LABELS_FOLDER, SHARDS
from clip_negatives.storage.shards import ClusteredShards, ShardRows
from clip_negatives.storage.source_files import SourceFile
from clip_negatives.training.method_state import MethodState
from clip_negatives.training.same_files import check_images, check_shards, warn_of_uncompared_shards

CORPUS = Path(__file__).resolve().parent / "corpus"  # valid inputs and those that once failed, a folder for each reader
PARTS: Any = environment().get_template("parts.html.j2").module  # of a report


@dataclass(frozen=True)
class Target:
    """A reader: the errors that it may raise, and its inputs."""

    errors: tuple[type[ClipNegativesError], ...]
    inputs: dict[str, st.SearchStrategy[bytes]]  # by kind, which is the ending of the file in the corpus
    read: Callable[[str, bytes], bool | None]  # checks the result too; True if a damaged file was ignored


def encoded(contents: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Return a strategy of texts as bytes, which `decode` with "surrogatepass" reverses."""
    return contents.map(lambda text: text.encode("utf-8", "surrogatepass"))


def options(scratch: Path) -> Target:
    """Return the reader of ``name:key=value,...``."""
    inputs = {}
    for kind in ("clusterer", "loss_weighting"):
        items = registry.default_registry().items(kind)
        specs = pick([f"{item.name}:{','.join(f'{one.name}={one.default}' for one in item.options)}" for item in items])
        keys = pick([f"{item.name}:{option.name}=" for item in items for option in item.options])
        inputs[kind] = encoded(st.builds(str.__add__, keys, texts) | specs.flatmap(text_of))

    def read(kind: str, content: bytes) -> None:
        registry.create(kind, content.decode("utf-8", "surrogatepass"))

    return Target((PluginError, InputError), inputs, read)


def captions(scratch: Path) -> Target:
    """Return the report, the terminal and the tokenizer, which all get captions."""
    tokenize = tiny_model(seed=0)[2]

    def tags(text: str) -> list[Any]:
        page = PARTS.table(Table(text, ("", f"{text}."), ((text, text),))) + PARTS.thumb(Picture(text, None), "Image")
        return [(tag.name, sorted(tag.attrs)) for tag in BeautifulSoup(str(page), "html.parser").find_all(True)]

    def read(kind: str, content: bytes) -> None:
        text = content.decode("utf-8", "surrogatepass")
        assert tags(text) == tags("x")
        assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in printable(text))
        tokens = tokenize([text])
        assert tokens.shape == tokenize(["x"]).shape
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < 49408

    joined = encoded(st.lists(texts, max_size=3).map(lambda words: "".join(words)[:1500]))
    return Target((), {"txt": joined}, read)


MODES = {"PNG": ("L", "LA", "P", "RGBA", "1", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "WEBP": ("RGB", "RGBA"), "GIF": ("P",)}
MODES |= {"BMP": ("RGB", "P"), "TIFF": ("RGB", "CMYK", "F"), "PPM": ("RGB",), "JPEG2000": ("RGB",), "EPS": ("RGB",)}


def pictures(side: int = 9) -> list[bytes]:
    """Return small images of all formats and modes; the last one is a PostScript program."""
    gradient, files = Image.radial_gradient("L").resize((side, side - 2)), []
    for kind, mode in ((kind, mode) for kind, modes in MODES.items() for mode in modes):
        (gradient.convert("I") if mode == "I;16" else gradient).convert(mode).save(stream := io.BytesIO(), kind)
        files.append(stream.getvalue())
    return files


def images(scratch: Path) -> Target:
    """Return the readers of images."""
    png, *_ = files = pictures()
    sizes = st.tuples(pick((2**31 - 1, 30000, 0, 1)), pick((2**31 - 1, 30000, 1)))
    huge = sizes.map(lambda size: png[:16] + struct.pack(">II", *size) + png[24:])

    def read(kind: str, content: bytes) -> None:
        small = read_small_image(io.BytesIO(content), 8)
        assert small is None or (small.mode == "RGB" and max(small.size) <= 8)
        assert read_image(io.BytesIO(content), "an input").mode == "RGB"

    return Target((DataError,), {"image": pick(files) | pick(files).flatmap(bytes_of) | huge}, read)


class _AllKeys:
    """A container that has every key."""

    def __contains__(self, key: object) -> bool:
        return True


def tars(scratch: Path) -> Target:
    """Return the readers of tars."""
    file = scratch / "pairs.tar"
    contents = pick([tar.read_bytes() for tar in sorted((CORPUS / "tars").iterdir())]).flatmap(tar_of)  # one tar is valid

    def read(kind: str, content: bytes) -> None:
        file.write_bytes(content)
        with file.open("rb") as stream, suppress(*DAMAGED):
            list(raw_samples(ShardStream(stream, str(file)), _AllKeys()))
        for sample in (sample for part in TarPairs(str(file), group_field="item").parts() for sample in part.samples()):
            text = (sample.text + (sample.group or "")) if isinstance(sample, Sample) else ""
            (sample.key + text).encode()

    return Target((DataError,), {"tar": contents}, read)


def csv(scratch: Path) -> Target:
    """Return the reader of csv files."""
    file = scratch / "pairs.csv"
    (scratch / "a.png").write_bytes(pictures()[0])
    rows = [("filepath", "title", "item"), *((str(scratch / "a.png"), f"text {row}", f"{row // 2}") for row in range(3))]
    whole = pick([end.join(map(mark.join, rows)) + end for mark in "\t\t,;" for end in ("\n", "\r\n")]).flatmap(text_of)
    contents = encoded(whole) | encoded(whole).flatmap(bytes_of) | whole.map(lambda text: text.encode("utf-16", "replace"))

    def read(kind: str, content: bytes) -> None:
        file.write_bytes(content)
        source = open_table(file, Columns(group="item"))
        for part in source.parts():
            assert len(list(part.samples())) == len(source)
            part.digest()

    return Target((DataError,), {"csv": contents}, read)


def results(scratch: Path) -> Target:
    """Return the readers of what a comparison keeps of finished runs; a damaged run is made again."""
    method = {"name": "in_batch", "sampler": "in_batch", "weighting": "uniform", "temperature": None}
    run = {"method": method, "seed": 0, "steps": 3, "queries": 2, "losses": [1.0, 2.0], "false_negatives_truth": "text"}
    run |= dict.fromkeys(FIGURES, 0.5) | {f"chance_rank_{k}": 0.1 for k in (1, 5, 10)}
    (scratch / "result.json").write_text(json.dumps({"identity": {}, "run": run}))
    both = torch.tensor([1, 2])
    answers = Queries(rank=both, image_rank=both, top=torch.tensor([0, 1]), item=torch.tensor([0, 1]))
    write_queries(answers, scratch)

    def read(kind: str, content: bytes) -> bool:
        file = scratch / kind.removesuffix(".pipe")
        file.unlink(missing_ok=True)
        os.mkfifo(file) if kind.endswith(".pipe") else file.write_bytes(content)
        if file.name == NAME:
            return read_queries(scratch) is None
        if (stored := read_run(file)) is None:
            return True
        _, kept = stored
        names = dict.fromkeys(("in_batch", kept["method"]["name"]))
        setting = {"seeds": 1, "runs_reused": 1}
        results_table(summarised(setting, [kept, run], list(names), {key: [answers] for key in names}))
        return False

    return Target((), changed_files(scratch), read)


def checkpoints(scratch: Path) -> Target:
    """Return the readers of checkpoints: open_clip's, and the loss's."""
    loss = AnchorLoss()
    loss.register_buffer("seen", torch.zeros(4))
    MethodState(loss).write(scratch / "loss.safetensors")
    program = type("Program", (), {"__reduce__": lambda self: (os.system, ("true",))})()  # its pickle runs a command
    for name, optimizer in {"epoch": {"state": {}, "param_groups": []}, "program": program}.items():
        kept = {"epoch": 1, "name": "run", "state_dict": {"w": torch.ones(2)}, "optimizer": optimizer}
        torch.save(kept, scratch / f"{name}.pt")

    def read(kind: str, content: bytes) -> None:
        (scratch / kind).write_bytes(content)
        if kind.endswith(".pt"):
            load_checkpoint(str(scratch / kind), map_location="cpu")
        else:
            MethodState(loss).read(scratch / kind)

    return Target((ArtifactError,), changed_files(scratch), read)


class Folder:
    """A whole clusters or labels folder, of which each input changes one file."""

    def __init__(self, path: Path) -> None:
        self.path, self.layout = path, LABELS_FOLDER if LABELS_FOLDER.is_at(path) else CLUSTERS_FOLDER
        self.whole = {file: file.read_bytes() for file in path.rglob("*.*")}
        self.inputs = changed_files(path)

    def put(self, kind: str, content: bytes) -> None:
        """Put a changed file among the whole ones, with its new digest unless the kind says "unsummed"."""
        name = kind.removeprefix("unsummed.").replace("+", "/")
        for file, data in {**self.whole, self.path / name: content}.items():
            file.write_bytes(data)
        if kind.startswith("unsummed.") or name == self.layout.manifest:
            return
        if name.startswith("shards/"):
            rows = pq.read_table(self.path / SHARDS).to_pylist()
            rows = [{**row, "sha256": digest(self.path / row["file"])} for row in rows]
            pq.write_table(pa.Table.from_pylist(rows), self.path / SHARDS)
        manifest = self.path / self.layout.manifest
        files = [file for file in self.whole if file.parent == self.path and file != manifest]
        self.layout.write_digests(self.path, json.loads(manifest.read_text()), files)


def write_folder(path: Path) -> Folder:
    """Write a clusters folder of two tars, with every file that it may have."""
    centroids = [normalize(torch.randn(k, k + 1, generator=torch.Generator().manual_seed(k)), dim=1) for k in (3, 4)]
    sides = [Clustering(torch.arange(12) % len(side), side) for side in centroids]
    features = [side.centroids[side.labels] for side in sides]
    clusters = Clusters(*sides, *map(similarity.centroid_similarity, centroids), *features)
    texts = ("red shoe", "blue hat", "")
    rows = [{"key": f"key {n}", "text": texts[n % 3], "image": f"/nowhere/{n}.png", "group": f"{n // 2}"} for n in range(12)]
    rows = [{**row, "shard": f"s/00000{n // 6}.tar", "bytes": n} for n, row in enumerate(rows)]
    sources = [SourceFile(f"s/00000{n}.tar", n or None, "0" * 64) for n in range(2)]
    write_clusters(path, clusters, pa.Table.from_pylist(rows), {"seed": 3, "data": "d", "clusterer": "kmeans"}, sources)
    pq.write_table(pa.table({"key": ["lost"], "reason": ["the image cannot be read"], "shard": ["a.tar"]}), path / BROKEN)
    Folder(path).put(BROKEN, (path / BROKEN).read_bytes())  # lists it in the manifest
    return Folder(path)


def clusters(scratch: Path) -> Target:
    """Return the reader of clusters folders, and what uses them: samplers, weightings, reports and `generate`."""
    folder, output = write_folder(scratch / "clusters"), scratch / "out" / "pairs.parquet"
    output.parent.mkdir()

    def read(kind: str, content: bytes) -> None:
        folder.put(kind, content)
        with suppress(ArtifactError, InputError):
            count = generate(folder.path, output)
            assert pq.read_metadata(output).num_rows == count > 0
            output.unlink()
        assert not any(output.parent.iterdir())
        result = read_clusters(folder.path)
        for name in ("image", "text"):
            side, table = getattr(result.clusters, name), getattr(result.clusters, f"{name}_similarity")
            assert int(side.sizes().min()) > 0
            assert bool(side.centroids[side.labels].isfinite().all() and (table.abs() < 1.001).all())
        assert len(Captions(result.samples)[:]) == result.clusters.n_samples
        json.dumps([result.manifest, result.samples.to_pylist(), result.broken.to_pylist()], ensure_ascii=False).encode()
        shards = ClusteredShards.of(result)
        with suppress(DataError):  # no file exists
            warn_of_uncompared_shards(shards, list(shards.endings))
        with suppress(DataError):
            check_shards(shards, list(shards.endings))
        with suppress(ArtifactError):  # no image exists
            check_images(result)
        check_images(dataclasses.replace(result, samples=result.samples.slice(0, 0)))
        assert sum(map(len, ShardRows.of(result).rows.values())) <= result.clusters.n_samples
        shown = images_of(result, None)
        assert shown is None or list(shown([0], 8)) == [None]
        PARTS.origin(result)

    return Target((ArtifactError,), folder.inputs, read)


def labels(scratch: Path) -> Target:
    """Return the reader of labels folders."""
    write_labels(write_folder(scratch / "of").path, scratch / "labels")
    folder = Folder(scratch / "labels")
    shards = pq.read_table(folder.path / SHARDS)["shard"].to_pylist()

    def read(kind: str, content: bytes) -> None:
        folder.put(kind, content)
        result = read_labels(folder.path)
        result.shards.check(shards)
        for image, text, _ in (entry for shard in shards for entry in result.shards.of(shard).values()):
            assert 0 <= image < result.clusters.image.n_clusters
            assert 0 <= text < result.clusters.text.n_clusters

    return Target((ArtifactError,), folder.inputs, read)


TARGETS = {make.__name__: make for make in (options, captions, images, tars, csv, results, checkpoints, clusters, labels)}
