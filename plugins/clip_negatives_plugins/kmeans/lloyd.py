"""Lloyd's algorithm in torch, for GPUs: reproducible for a seed, without an N x K table of distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.progress import current

SCORES_AT_ONCE = 2**26
"""Scores (samples x centroids) in memory at a time: 256 MB of float32."""


class Assignment(NamedTuple):
    """The nearest centroid of each sample.

    Attributes:
        labels: int64, shape (N,).
        far: distance to this centroid, float32, shape (N,): minus the cosine (spherical), or the squared distance.
    """

    labels: Tensor
    far: Tensor


@dataclass(frozen=True, slots=True)
class Lloyd:
    """Settings of Lloyd's algorithm.

    Attributes:
        n_clusters: K.
        n_iter: iterations.
        n_redo: runs from different starts, at least 1; the best run is used.
        spherical: keep centroids at unit length.
        dtype: dtype of the search for the nearest centroid. In half precision, the two best are compared again in float32.
    """

    n_clusters: int
    n_iter: int
    n_redo: int
    spherical: bool
    dtype: torch.dtype = torch.float32

    def centroids(self, features: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return centroids, float32, shape (K, D), on the device of the features.

        Args:
            features: float32, shape (N, D), N >= K.
            generator: CPU generator; draws the initial centroids among the samples.
        """
        runs, stage = [], current()
        stage.total, stage.unit = self.n_iter * self.n_redo, "iterations"
        for _ in range(self.n_redo):
            start = torch.randperm(len(features), generator=generator)[: self.n_clusters]
            centroids = self._unit(features[start.to(features.device)].clone())
            for _ in range(self.n_iter):
                centroids = self._means(features, centroids, self.assign(features, centroids))
                stage.advance()
            runs.append((float(self.assign(features, centroids).far.sum(dtype=torch.float64)), centroids))
        return min(runs, key=lambda run: run[0])[1]

    def assign(self, features: Tensor, centroids: Tensor) -> Assignment:
        """Return the nearest centroid of each sample; features are copied to the device of the centroids in parts."""
        # argmin |x - c|^2 = argmax x.c - |c|^2 / 2; between unit lengths the second term is constant.
        offset = torch.zeros_like(centroids[:, 0]) if self.spherical else centroids.square().sum(1) / 2
        parts = []
        for rows in features.split(max(1, SCORES_AT_ONCE // len(centroids))):
            x = rows.to(centroids.device, torch.float32)
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

    def _means(self, features: Tensor, centroids: Tensor, assignment: Assignment) -> Tensor:
        """Return the means of the clusters; an empty cluster restarts at a sample far from its centroid."""
        # Sort the samples instead of scattering them: sums by atomics differ from run to run.
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
