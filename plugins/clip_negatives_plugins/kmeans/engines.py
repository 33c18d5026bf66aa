"""What trains centroids and finds the nearest ones: faiss on the CPU, or torch on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.clustering.options import load_faiss
from clip_negatives_plugins.kmeans.lloyd import Assignment, Lloyd

Precision = Literal["float32", "tf32", "bfloat16"]
BLOCK = 65_536  # rows that are read at a time


class Engine(Protocol):
    """k-means and the search for the nearest centroid."""

    def centroids(self, sample: Tensor, k: int, seed: int) -> Tensor:
        """Return K centroids, float32, shape (K, D), of a sample, float32, shape (n, D), n >= K."""
        ...

    def assign(self, features: Tensor, centroids: Tensor) -> Assignment:
        """Return the nearest centroid of each row, on the CPU."""
        ...


@dataclass(frozen=True, slots=True)
class FaissEngine:
    """faiss on the CPU."""

    n_iter: int
    n_redo: int
    spherical: bool

    def centroids(self, sample: Tensor, k: int, seed: int) -> Tensor:
        """Return K centroids of a sample."""
        options = {"niter": self.n_iter, "nredo": self.n_redo, "seed": seed, "spherical": self.spherical}
        points = {"max_points_per_centroid": len(sample), "min_points_per_centroid": 1}
        engine = load_faiss().Kmeans(sample.shape[1], k, **options, **points)
        engine.train(sample.contiguous().numpy())
        centroids = torch.tensor(engine.centroids).view(k, sample.shape[1])
        # faiss copies the rows if there are K.
        return F.normalize(centroids, dim=1) if self.spherical and len(sample) == k else centroids

    def assign(self, features: Tensor, centroids: Tensor) -> Assignment:
        """Return the nearest centroid of each row, the rows block by block."""
        faiss = load_faiss()
        index = (faiss.IndexFlatIP if self.spherical else faiss.IndexFlatL2)(centroids.shape[1])
        index.add(centroids.contiguous().numpy())
        labels, far = torch.empty(len(features), dtype=torch.int64), torch.empty(len(features))
        for start in range(0, len(features), BLOCK):
            rows = features[start : start + BLOCK].float().contiguous()
            distances, nearest = index.search(rows.numpy(), 1)
            labels[start : start + BLOCK] = torch.from_numpy(nearest[:, 0])
            # The inner product of a spherical search falls with the distance.
            far[start : start + BLOCK] = torch.from_numpy(distances[:, 0]) * (-1.0 if self.spherical else 1.0)
        return Assignment(labels, far)


@dataclass(frozen=True, slots=True)
class TorchEngine:
    """torch on a device, which holds the sample, but not all features."""

    n_iter: int
    n_redo: int
    spherical: bool
    device: str
    precision: Precision

    def centroids(self, sample: Tensor, k: int, seed: int) -> Tensor:
        """Return K centroids of a sample."""
        generator = torch.Generator().manual_seed(seed)
        with _tensor_cores(self.precision == "tf32"):
            return self._lloyd(k).centroids(sample.to(self.device), generator=generator).cpu()

    def assign(self, features: Tensor, centroids: Tensor) -> Assignment:
        """Return the nearest centroid of each row."""
        with _tensor_cores(self.precision == "tf32"):
            labels, far = self._lloyd(len(centroids)).assign(features, centroids.to(self.device))
        return Assignment(labels.cpu(), far.cpu())

    def _lloyd(self, k: int) -> Lloyd:
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        return Lloyd(k, self.n_iter, self.n_redo, self.spherical, dtype)


@contextmanager
def _tensor_cores(allowed: bool) -> Iterator[None]:
    """Allow or forbid tensor cores for float32 products, and restore the setting afterwards."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # from torch 2.9 on; once set, the older functions raise an error
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if allowed else "ieee"
    else:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        if hasattr(matmul, "fp32_precision"):
            matmul.fp32_precision = before
        else:
            torch.set_float32_matmul_precision(before)
