"""The newest features of earlier steps as further negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives import FeatureQueue
from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clusters


class Xbm:
    """Contrast each anchor also with the newest features of earlier steps.

    ``loss_i = log(sum_j exp(z_ij) + sum_q exp(z_iq)) - z_ii``, where q are the samples in a queue of the other modality.
    Features in the queue have no gradients. A sample in the queue is not a negative of an anchor with the same id, or of the
    same group if the groups are known; the negatives of the step itself do not change. The queue takes the features of all
    processes after each step. Checkpoints store it, and re-clustering keeps it.

    * Source: XBM (Wang et al., 2020, arXiv:1912.06798), which fills a queue with features of the trained model, and uses it
      after a warm-up, when features drift slowly. The queue as negatives of InfoNCE is that of MoCo (He et al., 2020,
      arXiv:1911.05722), which fills it by a slow copy of the model. We could not read the papers again; XBM is for losses
      within one modality, with all samples of the same class in the queue as positives.
    * Our choice: two queues, images against texts; no positives in the queue; the default values.
    * Sign: none; further negatives, all with weight 1.

    Args:
        size: number of samples in the queue, at least 1. Each takes 8 bytes for each feature.
        start: share of the training before the queue is used, 0 .. 1. The queue fills from the first step on. 0 works in loops
            that do not know the length of the training.
    """

    requires_clusters = False

    def __init__(self, size: int = 4096, start: float = 0.1) -> None:
        check_number("size", size, at_least=1)
        check_number("start", start, at_least=0, at_most=1)
        self.size, self.start = size, start

    def __call__(self, clusters: Clusters | None) -> AnchorLoss:
        """Return the loss, with empty queues."""
        return _XbmLoss(clusters, self)


class _XbmLoss(AnchorLoss):
    def __init__(self, clusters: Clusters | None, options: Xbm) -> None:
        super().__init__()
        self.start, self.groups = options.start, None if clusters is None else clusters.groups
        self.n_samples = None if clusters is None else clusters.n_samples
        self.image, self.text = FeatureQueue(options.size), FeatureQueue(options.size)

    def forward(self, anchors: Anchors) -> Tensor:
        queue = self.text if anchors.modality == "image" else self.image
        early = anchors.step.progress < self.start if self.start > 0 else False
        losses = self._contrast(anchors, queue, early) if len(queue.features) else info_nce(anchors)
        queue.push(anchors.candidates, anchors.samples.candidates)
        return losses

    def _contrast(self, anchors: Anchors, queue: FeatureQueue, early: Tensor | bool) -> Tensor:
        cosines = (anchors.features @ queue.features.to(anchors.features.dtype).T).to(anchors.cosines)
        own, ids = anchors.samples.index[:, None], queue.ids
        removed = ~queue.filled | ((ids == own) & (own >= 0)) | early  # ids of streams without clusters are -1
        if self.groups is not None:
            self.groups = self.groups.to(ids.device)
            removed = removed | (self.groups[ids.clamp(min=0)] == self.groups[own])
        further = (anchors.scale * cosines + anchors.bias).masked_fill(removed, -torch.inf)
        return torch.cat([anchors.logits, further], dim=1).logsumexp(1) - anchors.positive
