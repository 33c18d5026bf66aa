"""k-means in torch against faiss, on whatever device there is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.errors import InputError
from clip_negatives_plugins.kmeans import lloyd as module
from clip_negatives_plugins.kmeans.clusterer import KMeans
from clip_negatives_plugins.kmeans.engines import TorchEngine
from clip_negatives_plugins.kmeans.lloyd import Lloyd

pytestmark = [pytest.mark.keeps_global_rng, pytest.mark.gpu]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class OnDevice(KMeans):
    """The branch for GPUs, on whatever there is."""

    def _engine(self):
        return TorchEngine(self.n_iter, self.n_redo, self.spherical, DEVICE, self.precision)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(n=600, k=12, dim=16, noise=0.25):
    centres = F.normalize(torch.randn(k, dim, generator=generator(1)), dim=1)
    truth = torch.randint(k, (n,), generator=generator(2))
    return F.normalize(centres[truth] + noise * torch.randn(n, dim, generator=generator(3)), dim=1)


def mean_similarity(points, found):
    return float((points * found.centroids[found.labels]).sum(1).mean())


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fits_as_well_as_faiss(spherical, precision):
    points = blobs()
    options = {"n_clusters": 12, "n_redo": 8, "spherical": spherical}
    theirs = KMeans(**options).fit(points, generator=generator())
    ours = OnDevice(**options, precision=precision).fit(points, generator=generator())
    assert mean_similarity(points, ours) == pytest.approx(mean_similarity(points, theirs), rel=0.01)


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nearest_centroids_whatever_the_chunks(monkeypatch, spherical, dtype):
    points, centroids = blobs(103), blobs(7)[:7] * (1 if spherical else torch.linspace(0.5, 2, 7)[:, None])
    expected = torch.cdist(points, F.normalize(centroids, dim=1) if spherical else centroids)
    if not spherical or dtype == torch.float32:
        monkeypatch.setattr(module, "SCORES_AT_ONCE", 7 * 10)
    found = Lloyd(7, 1, 1, spherical, dtype).assign(points, centroids.to(DEVICE))
    assert torch.equal(found.labels.cpu(), expected.argmin(1))
    far = -(points * centroids[found.labels.cpu()]).sum(1) if spherical else expected.min(1).values.square()
    torch.testing.assert_close(found.far.cpu(), far, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 299, 300])
def test_no_cluster_is_empty(k):
    found = OnDevice(n_clusters=k, n_iter=2).fit(blobs(300), generator=generator())
    assert found.labels.shape == (300,)
    assert found.centroids.shape == (k, 16)
    assert int(found.sizes().min()) >= 1


def test_empty_clusters_start_anew_at_far_samples():
    points = torch.cat([blobs(1).repeat(90, 1), blobs(40)[:10]])
    found = OnDevice(n_clusters=10).fit(points, generator=generator())
    assert int(found.sizes().min()) >= 1


def test_same_seed_same_clusters_and_features_are_left_alone():
    points = blobs()
    before = points.clone()
    first, second = (OnDevice(n_clusters=9).fit(points, generator=generator()) for _ in range(2))
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.centroids, second.centroids)
    assert torch.equal(points, before)
    assert not torch.equal(first.labels, OnDevice(n_clusters=9).fit(points, generator=generator(1)).labels)


def test_cap_of_training_samples_and_half_precision():
    found = OnDevice(n_clusters=10, max_samples_per_cluster=5).fit(blobs().half(), generator=generator())
    assert len(found.labels) == 600
    assert found.centroids.dtype == torch.float32


def test_never_holds_all_scores(monkeypatch):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 500)
    largest = []
    real = torch.Tensor.max

    def noted(self, *arguments):
        largest.append(self.numel())
        return real(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "max", noted)
    Lloyd(10, 2, 1, True).centroids(blobs().to(DEVICE), generator=generator())
    assert max(largest) <= 500


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"device": "mps"}, {"device": "cuda:97"}, {"precision": "float8"}])
def test_refuses_what_is_not_there(options):
    with pytest.raises(InputError, match=rf"device={options.get('device')}\.|got '{options.get('precision')}'\."):
        KMeans(**options)
