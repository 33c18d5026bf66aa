"""Clusters of real listings of the catalogue, with and without groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_negatives import ClustersFolder, Columns
from clip_negatives.dataset import open_pairs
from clip_negatives.pipelines.prepare import prepare
from tests.pairs import write_csv

N = 300


@pytest.fixture(scope="session")
def listings_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("listings"), N)


@pytest.fixture(scope="session")
def grouped(listings_csv: Path) -> ClustersFolder:
    source = open_pairs(listings_csv, Columns(group="item"))
    return prepare(source, listings_csv.parent / "grouped", progress=False)


@pytest.fixture(scope="session")
def ungrouped(listings_csv: Path) -> ClustersFolder:
    return prepare(open_pairs(listings_csv), listings_csv.parent / "ungrouped", progress=False)
