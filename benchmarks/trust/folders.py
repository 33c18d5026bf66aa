"""Folders that were made by the package, one file of which is changed for each input."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from formats import change_table, change_tensors
from mutations import change_json, json_bytes

from clip_negatives.artifacts import BROKEN, write_clusters
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.labels import write_labels
from clip_negatives.similarity import centroid_similarity

N = 12
"""Samples of the folders."""


def write_clusters_folder(path: Path) -> None:
    """Write a clusters folder of two tars."""
    sides = []
    for k, dim in ((3, 4), (4, 5)):
        centroids = F.normalize(torch.randn(k, dim, generator=torch.Generator().manual_seed(k)), dim=1)
        sides.append(Clustering(torch.arange(N) % k, centroids))
    image, text = sides
    tables = centroid_similarity(image.centroids), centroid_similarity(text.centroids)
    features = image.centroids[image.labels], text.centroids[text.labels]
    columns = {
        "key": [f"key {row}" for row in range(N)],
        "text": [("red shoe", "blue hat", "")[row % 3] for row in range(N)],
        "image": [f"/nowhere/{row}.png" for row in range(N)],
        "group": [f"{row // 2}" for row in range(N)],
        "shard": [f"s/00000{row // 6}.tar" for row in range(N)],
    }
    write_clusters(
        path, Clusters(image, text, *tables, *features), pa.table(columns), {"seed": 3, "data": "d", "clusterer": "kmeans"}
    )
    pq.write_table(pa.table({"key": ["lost"], "reason": ["the image cannot be read"]}), path / BROKEN)
    whole = Folder(path, "manifest.json")
    whole.put(BROKEN, (path / BROKEN).read_bytes(), summed=True)


def write_labels_folder(path: Path) -> None:
    """Write the labels folder of such a clusters folder."""
    write_clusters_folder(path.with_name("of"))
    write_labels(path.with_name("of"), path)


class Folder:
    """Hold a folder, so that each input begins with it as it was made.

    Args:
        path: the folder.
        manifest: name of its manifest.
    """

    def __init__(self, path: Path, manifest: str) -> None:
        self.path, self.manifest = path, manifest
        names = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
        self.whole = {name: (path / name).read_bytes() for name in names}
        self._changed: set[str] = set()

    def put(self, name: str, content: bytes, *, summed: bool) -> None:
        """Change one file, and undo the last change.

        Args:
            name: of the file.
            content: of the file.
            summed: whether those that have its size and digest are told, so that it is read and not refused at once.
        """
        files = {**self.whole, name: content}
        if summed:
            if name.startswith("shards/"):
                files["shards.parquet"] = _told(files["shards.parquet"], name, content)
            files[self.manifest] = _listed(files, self.manifest)
        for changed in self._changed | {one for one in files if files[one] is not self.whole.get(one)}:
            (self.path / changed).write_bytes(files[changed])
        self._changed = {one for one in files if files[one] is not self.whole.get(one)}

    def check(self) -> None:
        """Make sure that nobody has made a file, or taken one away.

        Raises:
            AssertionError: somebody has.
        """
        found = {os.path.relpath(f"{where}/{name}", self.path) for where, _, names in os.walk(self.path) for name in names}
        assert found == set(self.whole), f"files in the folder: {sorted(found ^ set(self.whole))}"

    def make(self, name: str, rng: Random) -> tuple[str, bytes]:
        """Return the kind of an input (name of the file, and whether its digest is right), and the file's content."""
        data = self.whole[name]
        if name.endswith(".json"):
            return name, json_bytes(change_json(json.loads(data), rng), rng)
        change = change_tensors if name.endswith(".safetensors") else change_table
        return ("" if rng.random() < 0.97 else "unsummed.") + name.replace("/", "+"), change(data, rng)

    def take(self, kind: str, content: bytes) -> None:
        """Put an input of `make` in its place."""
        name = kind.removeprefix("unsummed.").replace("+", "/")
        self.put(name, content, summed=name != self.manifest and not kind.startswith("unsummed."))


def _listed(files: dict[str, bytes], manifest: str) -> bytes:
    """Return the manifest with sizes and digests of these files."""
    told = json.loads(files[manifest])
    for name, content in files.items():
        if name != manifest and "/" not in name:
            told["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(told).encode()


def _told(shards: bytes, name: str, content: bytes) -> bytes:
    """Return the table of shards with the digest of one file."""
    rows = [{**row, "sha256": hashlib.sha256(content).hexdigest()} if row["file"] == name else row for row in _rows(shards)]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


@functools.lru_cache(maxsize=1)
def _rows(shards: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(shards)).to_pylist()
    return rows
