"""A small clusters folder of real listings, one with a hostile text, and its report."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from clip_negatives import ClustersFolder, Columns, read_clusters
from clip_negatives.checking import check
from clip_negatives.checking.truth import with_groups
from clip_negatives.dataset import open_pairs
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.report import write_check, write_inspection
from tests.pairs import write_csv

N = 64
COMMANDS = ["clip-negatives train --clusters 'my clusters' -- --train-data 'my data.csv'"]
HOSTILE = """<script>alert(1)</script> "double" 'single' & <b>bold</b> \x1b[2J \u202eevil \x07 مرحبا"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ClustersFolder:
    home = tmp_path_factory.mktemp("data")
    file = write_csv(home, N)
    with file.open(newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    rows[5][1] = HOSTILE
    with file.open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(rows)
    source = open_pairs(file, Columns(group="item"))
    prepare(source, home / "clusters", Recipe(clusterer="kmeans:n_clusters=6"), progress=False)
    return read_clusters(home / "clusters")


@pytest.fixture(scope="session")
def check_page(folder: ClustersFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a check in which pairs of one item are suspect, as if no groups were known."""
    ungrouped = with_groups(folder, [""] * N)
    return write_check(check(ungrouped, choose=False), tmp_path_factory.mktemp("check") / "check", commands=COMMANDS).page


@pytest.fixture(scope="session")
def page(folder: ClustersFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report with more pairs than the page shows at first; no pair is removed."""
    return write_inspection(folder, tmp_path_factory.mktemp("page") / "report", batch_size=32, pairs=40).page
