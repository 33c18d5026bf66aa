"""A temperature for each sample, from a network that is trained with a robust loss."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clusters
from clip_negatives_plugins.learned_temperature.network import FactorNetwork


class LearnedTemperature:
    """Multiply the logits of each anchor by a factor f_i that a small network learns.

    The model minimises ``InfoNCE_i(f_i z) / f_i``, with f_i as a constant. The network minimises the robust loss
    ``(log mean over j != i of exp(f_i (z_ij - z_ii)) + rho log(G - 1)) / f_i``, with the logits as constants. Its minimum is
    the largest mean of ``z_ij - z_ii`` over all weights of the G - 1 negatives within a KL divergence of ``rho log(G - 1)``
    from equal weights. f_i starts at 1, falls where few negatives dominate, and rises otherwise. The value of the loss is that
    of the model's part. Logged: the mean of ``1 / (scale f_i)``, as ``image_temperature`` and ``text_temperature``.

    * Source: TempNet (Qiu et al., 2024, arXiv:2404.04575), after iSogCLR (Qiu et al., 2023, arXiv:2305.11965). We read the
      authors' code, not the papers: live features without gradients, networks with prototypes, moving averages for each sample
      as in SogCLR, rho 7 without the factor ``log(G - 1)``.
    * Our choice: live features, as there, because re-clustering may replace the frozen ones by those of another encoder; a
      fixed random projection and two layers; estimates from the step alone; the own pair in the model's part; rho as a share
      of the largest divergence, for any batch size; all values.
    * Sign: none by itself; the temperature of an anchor follows its live similarities.

    Args:
        rho: limit of the KL divergence, as a share of the largest one, above 0 and below 1.
        limit: f_i is within 1 / limit .. limit, above 1.
        width: number of hidden units of each network, at least 1.
    """

    requires_clusters = False

    def __init__(self, rho: float = 0.5, limit: float = 4.0, width: int = 64) -> None:
        check_number("rho", rho, above=0, below=1)
        check_number("limit", limit, above=1)
        check_number("width", width, at_least=1)
        self.rho, self.limit, self.width = rho, limit, width

    def __call__(self, clusters: Clusters | None) -> AnchorLoss:
        """Return the loss, with a network for each modality."""
        return _LearnedTemperatureLoss(self)


class _LearnedTemperatureLoss(AnchorLoss):
    def __init__(self, options: LearnedTemperature) -> None:
        super().__init__()
        self.rho = options.rho
        self.image, self.text = (FactorNetwork(options.width, options.limit) for _ in range(2))

    def forward(self, anchors: Anchors) -> Tensor:
        network = self.image if anchors.modality == "image" else self.text
        factor: Tensor = network(anchors.features.detach()).to(anchors.logits)
        anchors.step.log(f"{anchors.modality}_temperature", (1 / (anchors.scale * factor)).mean())
        fixed = factor.detach()
        of_model = info_nce(replace(anchors, logits=fixed[:, None] * anchors.logits)) / fixed
        of_network = self._robust(anchors, factor)
        return of_model + (of_network - of_network.detach())

    def _robust(self, anchors: Anchors, factor: Tensor) -> Tensor:
        distances = (anchors.logits - anchors.positive[:, None]).detach()
        log_count = math.log(max(1, distances.shape[1] - 1))
        weighted = (factor[:, None] * distances).masked_fill(~anchors.negatives, -torch.inf)
        return (weighted.logsumexp(1) - (1 - self.rho) * log_count) / factor
