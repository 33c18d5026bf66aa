"""The sampler `curriculum`: from random batches to batches with runs of similar samples."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.interfaces import Clustering, SamplingContext
from clip_negatives.sampling import PlannedSampler, permutation, require_clusters

Side = Literal["image", "text"]
First = Literal["random", "sparse"]

ROWS = 2**16  # samples whose cosines are computed at a time


class Curriculum(PlannedSampler):
    """Batches that grow harder: more and more samples meet samples of their own cluster.

    In each epoch, a share of the samples is sorted by cluster and cut into runs of `run` samples; the others stay alone. Runs
    and single samples are shuffled and fill the batches. The share grows linearly from 0 in the first epoch to `share` in the
    last of `epochs`, and then stays. Epoch 0 is a uniform shuffle.

    With ``first="sparse"``, the samples of the sparsest clusters come into runs first, and those of the densest, which have
    most near-duplicates, last. The density of a cluster is the mean cosine of its samples with their centroid.

    * Source: curriculum learning (Bengio et al., ICML 2009): easy examples first.
    * Our choice: the whole method. It was not compared with other samplers.
    * Sign: collects similar samples, by the frozen similarity, more so in later epochs.

    Args:
        run: samples of a run, at least 2.
        share: largest share of the samples in runs, 0 .. 1.
        epochs: epochs in which the share grows, at least 1; 1 has the largest share from the beginning.
        by: clusters of the "image" or the "text".
        first: samples that come into runs first: "random" ones, or those of "sparse" clusters.

    Raises:
        InputError: there are no clusters, no features for "sparse", or an option is out of range.
        DataError: the data have fewer samples than one step.
    """

    def __init__(
        self,
        context: SamplingContext,
        run: int = 4,
        share: float = 0.5,
        epochs: int = 10,
        by: Side = "image",
        first: First = "random",
    ) -> None:
        super().__init__(context, self._plan)
        check_number("run", run, at_least=2)
        check_number("share", share, at_least=0, at_most=1)
        check_number("epochs", epochs, at_least=1)
        check_choice("by", by, get_args(Side))
        check_choice("first", first, get_args(First))
        clusters = require_clusters(context, "curriculum")
        clustering = clusters.image if by == "image" else clusters.text
        self.labels = clustering.labels
        self.density = densities(clustering, clusters.features_of(by, "curriculum")) if first == "sparse" else None
        self.run, self.share, self.epochs = run, share, epochs

    def share_in(self, epoch: int) -> float:
        """Return the share of the samples in runs in this epoch."""
        return self.share if self.epochs == 1 else self.share * min(1.0, epoch / (self.epochs - 1))

    def _plan(self, generator: torch.Generator, epoch: int) -> Tensor:
        used = permutation(self.context.n_samples, generator)[: len(self) * self.step_size]
        if self.density is not None:
            used = used[self.density[self.labels[used.long()]].argsort(stable=True)]
        n = int(self.share_in(epoch) * len(used))
        in_runs = used[:n][self.labels[used[:n].long()].argsort(stable=True)]
        blocks = torch.cat([torch.arange(n) // self.run, torch.arange(len(used) - n) + (n + self.run - 1) // self.run])
        order = torch.randperm(int(blocks[-1]) + 1, generator=generator)[blocks].argsort(stable=True)
        return torch.cat([in_runs, used[n:]])[order].view(len(self), self.step_size)


def densities(clustering: Clustering, features: Tensor) -> Tensor:
    """Return the mean cosine of the samples of each cluster with their centroid, float32, shape (K,), -1 .. 1.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> densities(Clustering(torch.tensor([0, 0, 1]), torch.eye(2)), x)
        tensor([0.8000, 1.0000])
    """
    centroids = F.normalize(clustering.centroids, dim=1)
    cosines = torch.cat(
        [
            (rows.float() * centroids[of]).sum(1)
            for rows, of in zip(features.split(ROWS), clustering.labels.split(ROWS), strict=True)
        ]
    )
    return torch.zeros(clustering.n_clusters).index_add_(0, clustering.labels, cosines) / clustering.sizes()
