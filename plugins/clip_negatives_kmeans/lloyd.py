"""Lloyd's algorithm in torch, for GPUs: N x K distances are never held, and the same seed gives the same clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_AT_ONCE = 2**26
"""Scores of samples with centroids that are held at a time: 256 MB of float32."""


class Assignment(NamedTuple):
    """Hold the nearest centroid of each sample.

    Attributes:
        labels: int64, shape (N,).
        far: how far it is, larger is farther: minus the cosine (spherical) or the squared distance, float32, shape (N,).
    """

    labels: Tensor
    far: Tensor


@dataclass(frozen=True, slots=True)
class Lloyd:
    """Run Lloyd's algorithm.

    Attributes:
        n_clusters: K.
        n_iter: iterations.
        n_redo: runs from different starts, of which the best is kept.
        spherical: whether centroids are kept at unit length.
        dtype: in which nearest centroids are searched. In bfloat16 or float16 the two best are compared again in float32, so
            that only a sample whose nearest centroid is third in half precision goes astray.
    """

    n_clusters: int
    n_iter: int
    n_redo: int
    spherical: bool
    dtype: torch.dtype = torch.float32

    def centroids(self, features: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return centroids of `features`, float32, shape (N, D), on their device; float32, shape (K, D).

        Args:
            features: at least K samples.
            generator: on the CPU; chooses the samples to start from.
        """
        best, least = None, float("inf")
        for _ in range(self.n_redo):
            start = torch.randperm(len(features), generator=generator)[: self.n_clusters]
            found = self._unit(features[start.to(features.device)].clone())
            for _ in range(self.n_iter):
                found = self._moved(features, found, self.assign(features, found))
            total = float(self.assign(features, found).far.sum(dtype=torch.float64))
            if best is None or total < least:
                best, least = found, total
        if best is None:
            raise ValueError(f"Expected n_redo of at least 1, got {self.n_redo}.")
        return best

    def assign(self, features: Tensor, centroids: Tensor) -> Assignment:
        """Return the nearest centroid of each sample; features elsewhere are moved to the centroids a part at a time."""
        # argmin |x - c|^2 = argmax x.c - |c|^2 / 2; between unit lengths the second term is the same for all.
        offset = torch.zeros_like(centroids[:, 0]) if self.spherical else centroids.square().sum(1) / 2
        rows = max(1, SCORES_AT_ONCE // len(centroids))
        parts = []
        for some in features.split(rows):
            x = some.to(centroids.device, torch.float32)
            scores = x.to(self.dtype) @ centroids.to(self.dtype).T - offset.to(self.dtype)
            if self.dtype == torch.float32:
                score, label = scores.max(1)
            else:
                candidates = scores.topk(min(2, len(centroids)), dim=1).indices
                exact = (x[:, None] * centroids[candidates]).sum(2) - offset[candidates]
                score, place = exact.max(1)
                label = candidates.gather(1, place[:, None])[:, 0]
            far = -score if self.spherical else (x.square().sum(1) - 2 * score).clamp(min=0)
            parts.append(Assignment(label, far))
        return Assignment(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _moved(self, features: Tensor, centroids: Tensor, assignment: Assignment) -> Tensor:
        """Return the means of the clusters; an empty cluster starts anew at a sample that is far from its centroid."""
        # Sorted and not scattered: sums by atomics would differ from run to run.
        order = assignment.labels.argsort(stable=True)
        sizes = assignment.labels.bincount(minlength=len(centroids))
        sums: Tensor = torch.segment_reduce(features[order], "sum", lengths=sizes, axis=0, initial=0)
        means = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero().flatten()
        if len(empty):
            far = assignment.far.topk(min(len(empty), len(features))).indices
            means[empty[: len(far)]] = features[far]
        return self._unit(means)

    def _unit(self, centroids: Tensor) -> Tensor:
        return F.normalize(centroids, dim=1) if self.spherical else centroids
