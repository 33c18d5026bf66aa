"""Fixtures that many tests share; and a stop where the package is not installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import entry_points

import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is first imported, which decides there and then

from clip_negatives.clustering.similarity import centroid_similarity
from clip_negatives.interfaces import Clustering, Clusters

LONG_FILES = (
    "tests/test_docs_run.py",
    "tests/compare/test_compare.py",
    "tests/losses/kernels/test_machine_code.py",
    "tests/integrations/test_open_clip_rivals.py",
    "tests/test_third_party.py",
)
"""Files of tests that take minutes; they start first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in LONG_FILES)


def pytest_configure() -> None:
    if not entry_points(group="clip_negatives"):
        raise pytest.UsageError("The plugins are found by their entry points: install first, pip install -e .")


def make_clusters(n: int = 240, k_image: int = 12, k_text: int = 10, dim: int = 8, seed: int = 0) -> Clusters:
    """Return clusters of random features, of uneven sizes, none empty."""
    generator = torch.Generator().manual_seed(seed)

    def one(k: int) -> tuple[Clustering, torch.Tensor]:
        centroids = F.normalize(torch.randn(k, dim, generator=generator), dim=1)
        uneven = torch.multinomial(torch.linspace(1, 4, k), n - k, replacement=True, generator=generator)
        labels = torch.cat([torch.arange(k), uneven])[torch.randperm(n, generator=generator)]
        noise = 0.3 * torch.randn(n, dim, generator=generator)
        return Clustering(labels, centroids), F.normalize(centroids[labels] + noise, dim=1)

    (image, image_features), (text, text_features) = one(k_image), one(k_text)
    return Clusters(
        image,
        text,
        centroid_similarity(image.centroids),
        centroid_similarity(text.centroids),
        image_features,
        text_features,
    )


@pytest.fixture
def clusters() -> Clusters:
    return make_clusters()


@pytest.fixture(autouse=True)
def global_generator_untouched(request: pytest.FixtureRequest) -> object:
    """Fail a test marked so if anything draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    if request.node.get_closest_marker("keeps_global_rng"):
        assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute in one thread: tiny models gain nothing from more, and wait long where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
