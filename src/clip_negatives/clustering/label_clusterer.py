"""Base class of clusterers that only label the samples: checks, noise, empty clusters, centroids."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.clustering.options import check_features
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering

TOLERANCE = 0.01  # of the norm of a feature; bfloat16 rounds the norm by at most 0.004
BLOCK = 8192  # rows that are checked at a time
NOISE = -1  # label of a sample without a cluster, as in scikit-learn


class LabelClusterer(ABC):
    """A `Clusterer` whose subclass only returns a label for each sample, such as an estimator of scikit-learn.

    A sample with the label -1 (noise) gets a cluster of its own. Labels without samples are dropped, so that the clusters are
    0 .. K-1, in the order of the labels. A centroid is the mean of the samples of its cluster, scaled to unit norm.

    Examples:
        >>> class Signs(LabelClusterer):
        ...     def labels_of(self, features, seed):
        ...         return (features[:, 0] > 0).astype(int)
        >>> features = F.normalize(torch.tensor([[3.0, 4.0], [-1.0, 0.0], [4.0, 3.0]]), dim=1)
        >>> Signs().fit(features, generator=torch.Generator()).labels
        tensor([1, 0, 1])
    """

    @abstractmethod
    def labels_of(self, features: np.ndarray, seed: int) -> np.ndarray:
        """Return the label of each sample, integers, shape (N,); -1 is noise.

        Args:
            features: unit norm, float32, shape (N, D). They can be memory-mapped: do not change them.
            seed: seed of all random draws, such as ``random_state``, 0 .. 2^31-2.

        Raises:
            ValueError: the samples cannot be clustered; `fit` turns it into an `InputError`.
        """

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        """Cluster `features`, float, shape (N, D), unit norm.

        Raises:
            InputError: features have a wrong shape or dtype, are not finite, or do not have unit norm; or `labels_of` raises a
                ValueError, or returns labels of a wrong shape, dtype or value.
        """
        check_features(features)
        _check_unit_norm(features)
        rows = features.float().contiguous()
        labels = self._labels(rows, int(torch.randint(2**31 - 1, (1,), generator=generator)))
        labels[labels == NOISE] = labels.max() + 1 + torch.arange(int((labels == NOISE).sum()))
        labels = labels.unique(return_inverse=True)[1]
        return Clustering(labels, _centroids(rows, labels))

    def _labels(self, rows: Tensor, seed: int) -> Tensor:
        """Return what `labels_of` returns, after a check, int64, shape (N,)."""
        name = type(self).__name__
        try:
            labels = np.asarray(self.labels_of(rows.numpy(), seed))
        except InputError:
            raise
        except ValueError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"{name} fails on features of shape {tuple(rows.shape)}: {reason}.") from error
        if labels.shape != (len(rows),) or not np.issubdtype(labels.dtype, np.integer):
            fault = f"got {labels.dtype} of shape {labels.shape}"
            raise InputError(f"labels_of of {name} must return integers of shape {(len(rows),)}, {fault}.")
        if labels.min() < NOISE:
            raise InputError(f"labels_of of {name} must return labels from 0 on, or -1 for noise, got {labels.min()}.")
        return torch.from_numpy(labels.astype(np.int64))


def _check_unit_norm(features: Tensor) -> None:
    """Raise an `InputError` that names the first row that is not finite or does not have unit norm."""
    for place, block in enumerate(features.split(BLOCK)):
        norms = block.float().norm(dim=1)
        wrong = ~((norms - 1).abs() <= TOLERANCE)  # also NaN
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            row = place * BLOCK + first
            if not bool(block[first].isfinite().all()):
                raise InputError(f"Features contain NaN or infinity, first in row {row}. Check that sample.")
            repair = "Scale the rows: torch.nn.functional.normalize(features, dim=1)"
            raise InputError(f"Expected features of unit norm, but the norm of row {row} is {norms[first]:.4g}. {repair}.")


def _centroids(rows: Tensor, labels: Tensor) -> Tensor:
    """Return the mean direction of each cluster, float32, shape (K, D)."""
    sums = rows.new_zeros(int(labels.max()) + 1, rows.shape[1]).index_add_(0, labels, rows)
    for cluster in (sums.norm(dim=1) < 1e-6).nonzero().flatten().tolist():  # the samples cancel out: take one of them
        sums[cluster] = rows[(labels == cluster).nonzero()[0, 0]]
    return F.normalize(sums, dim=1)
