"""`LabelClusterer` turns labels into clusters, and passes the conformance kit with estimators of scikit-learn."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, MiniBatchKMeans
from torch import Tensor

from clip_negatives import Clusterer, Clustering, LabelClusterer
from clip_negatives.errors import InputError
from clip_negatives.testing import check_clusterer, parametrize_with_checks

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.keeps_global_rng


@dataclass
class Hdbscan(LabelClusterer):
    min_cluster_size: int = 5

    def labels_of(self, features: np.ndarray, seed: int) -> np.ndarray:
        return HDBSCAN(self.min_cluster_size, copy=True).fit_predict(features)


@dataclass
class Agglomerative(LabelClusterer):
    n_clusters: int = 8

    def labels_of(self, features: np.ndarray, seed: int) -> np.ndarray:
        return AgglomerativeClustering(self.n_clusters, metric="cosine", linkage="average").fit_predict(features)


@dataclass
class Drawn(LabelClusterer):
    """An estimator that draws random numbers."""

    def labels_of(self, features: np.ndarray, seed: int) -> np.ndarray:
        return MiniBatchKMeans(8, random_state=seed, n_init=1).fit_predict(features)


@dataclass
class Given(LabelClusterer):
    """The labels that it is given."""

    labels: Sequence[object]

    def labels_of(self, features: np.ndarray, seed: int) -> np.ndarray:
        return np.asarray(self.labels)


def points(n: int = 200, dim: int = 16) -> Tensor:
    """Return unit-norm features: ten groups, and one sample in ten that is in no group."""
    generator = torch.Generator().manual_seed(0)
    centres, noise = torch.randn(10, dim, generator=generator), torch.randn(n, dim, generator=generator)
    features = centres[torch.arange(n) % 10] + 0.2 * noise
    features[::10] = noise[::10]
    return F.normalize(features, dim=1)


def fit(clusterer: LabelClusterer, features: Tensor) -> Clustering:
    return clusterer.fit(features, generator=torch.Generator().manual_seed(0))


@parametrize_with_checks("clusterer", Hdbscan, Agglomerative, Drawn)
def test_conforms(plugin, check):
    check(plugin)


def test_five_lines_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (ROOT / "docs" / "plugins.md").read_text().split("\n## Clusterers\n")[1]
    (block,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    (tmp_path / "documented_clusterer.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    documented = importlib.import_module("documented_clusterer")
    assert len([line for line in inspect.getsource(documented.Hdbscan).splitlines() if line]) == 5
    assert [result.status for result in check_clusterer(documented.Hdbscan)] == ["passed"] * 14
    assert torch.equal(fit(documented.Hdbscan(), points()).labels, fit(Hdbscan(), points()).labels)


def test_noise_of_hdbscan_is_a_cluster_of_each_sample() -> None:
    features = points()
    expected = HDBSCAN(5, copy=True).fit_predict(features.numpy())
    n_groups, noise = expected.max() + 1, expected == -1
    assert n_groups > 3
    assert noise.sum() > 3
    clustering = fit(Hdbscan(), features)
    labels = clustering.labels.numpy()
    assert (labels[~noise] == expected[~noise]).all()
    assert labels[noise].tolist() == [*range(n_groups, n_groups + noise.sum())]
    assert clustering.n_clusters == n_groups + noise.sum()


def test_labels_of_agglomerative_clustering_are_kept() -> None:
    features = points()
    estimator = AgglomerativeClustering(8, metric="cosine", linkage="average")
    assert fit(Agglomerative(), features).labels.tolist() == estimator.fit_predict(features.numpy()).tolist()


def test_the_generator_gives_the_seed() -> None:
    features = points()
    seed = int(torch.randint(2**31 - 1, (1,), generator=torch.Generator().manual_seed(0)))
    expected = MiniBatchKMeans(8, random_state=seed, n_init=1).fit_predict(features.numpy())
    assert fit(Drawn(), features).labels.tolist() == np.unique(expected, return_inverse=True)[1].tolist()


def test_it_is_a_clusterer() -> None:
    assert isinstance(Hdbscan(), Clusterer)
    with pytest.raises(TypeError, match="labels_of"):
        LabelClusterer()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 0, 1], [0, 1, 0, 1]),
        ([7, 3, 7, 5], [2, 0, 2, 1]),
        ([-1, 2, -1, 2], [1, 0, 2, 0]),
        ([-1, -1, -1, -1], [0, 1, 2, 3]),
        (np.array([3, 3, 1, 1], dtype=np.uint8), [1, 1, 0, 0]),
    ],
)
def test_clusters_are_numbered_without_gaps(labels: Sequence[int], expected: list[int]) -> None:
    clustering = fit(Given(labels), torch.eye(4))
    assert clustering.labels.dtype == torch.int64
    assert clustering.labels.tolist() == expected
    assert clustering.sizes().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_centroids_are_mean_directions(dtype: torch.dtype) -> None:
    features, labels = points(40).to(dtype), torch.arange(40) % 4
    clustering = fit(Given(labels), features)
    means = torch.stack([features[labels == label].float().mean(0) for label in range(4)])
    torch.testing.assert_close(clustering.centroids, F.normalize(means, dim=1))
    torch.testing.assert_close(clustering.centroids.norm(dim=1), torch.ones(4))


def test_centroid_of_samples_that_cancel_out_is_the_first_of_them() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert fit(Given([0, 1, 0]), features).centroids.tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "Features contain NaN or infinity, first in row 9000. Check that sample."),
        (float("-inf"), "Features contain NaN or infinity, first in row 9000. Check that sample."),
        (3.0, "Expected features of unit norm, but the norm of row 9000 is 3. Scale the rows: "),
        (0.0, "Expected features of unit norm, but the norm of row 9000 is 0. Scale the rows: "),
    ],
)
def test_wrong_features_are_named(value: float, message: str) -> None:
    features = torch.ones(9002, 1)
    features[9000:] = value
    with pytest.raises(InputError) as caught:
        fit(Given([0] * 9002), features)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "labels_of of Given must return integers of shape (4,), got int64 of shape (2,)."),
        ([0.0, 1.0, 0.0, 1.0], "labels_of of Given must return integers of shape (4,), got float64 of shape (4,)."),
        ([[0], [1], [0], [1]], "labels_of of Given must return integers of shape (4,), got int64 of shape (4, 1)."),
        ([0, 1, -2, 0], "labels_of of Given must return labels from 0 on, or -1 for noise, got -2."),
    ],
)
def test_wrong_labels_are_named(labels: Sequence[object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        fit(Given(labels), torch.eye(4))
    assert str(caught.value) == message


def test_errors_of_an_estimator_are_one_sentence() -> None:
    with pytest.raises(
        InputError, match=r"^Agglomerative fails on features of shape \(4, 4\): Cannot extract more clusters .*\.$"
    ):
        fit(Agglomerative(), torch.eye(4))
    with pytest.raises(InputError, match=r"^Hdbscan fails on features .*'min_cluster_size' .* Got 1 instead\.$"):
        fit(Hdbscan(min_cluster_size=1), points())
