"""A small clusters folder of real listings, one of them with a hostile text, and the report on it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from clip_negatives import ClustersFolder, read_clusters
from clip_negatives.dataset import open_pairs
from clip_negatives.prepare import prepare
from clip_negatives.report import write_inspection

from ..pairs import write_csv

N = 64
HOSTILE = """<script>alert(1)</script> "double" 'single' & <b>bold</b>"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ClustersFolder:
    home = tmp_path_factory.mktemp("data")
    file = write_csv(home, N)
    with file.open(newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    rows[5][1] = HOSTILE
    with file.open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(rows)
    source = open_pairs(file, group_column="item")
    prepare(source, home / "clusters", clusterer="kmeans:n_clusters=6", progress=False)
    return read_clusters(home / "clusters")


@pytest.fixture(scope="session")
def page(folder: ClustersFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page with more pairs than are shown at first, none removed."""
    return write_inspection(folder, tmp_path_factory.mktemp("page") / "report", batch_size=32, pairs=40).page
