"""torchmetrics classes: retrieval and false negatives over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from clip_negatives.interfaces import LossTerms
from clip_negatives.metrics.false_negatives import count_false_negatives, false_negative_figures
from clip_negatives.metrics.rank import CHUNK, rank_at_k


class FalseNegatives(Metric):
    """False negatives in batches, before and after a weighting: `count_false_negatives` summed over all updates.

    Examples:
        >>> metric = FalseNegatives()
        >>> metric.update(torch.tensor([0, 0, 1, 2]))
        >>> metric.compute()["per_anchor"]
        tensor(0.5000, dtype=torch.float64)
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("counts", default=torch.zeros(8, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, groups: Tensor, terms: LossTerms | None = None, anchors: Tensor | None = None) -> None:
        """Add a batch; the arguments are those of `count_false_negatives`."""
        self.counts += count_false_negatives(groups, terms, anchors).to(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Return `false_negative_figures`."""
        return false_negative_figures(self.counts)


class RankAtK(Metric):
    """Rank@k from text to image and from image to text, over the features of all updates.

    Args:
        top_k: values of k.
        chunk_size: queries compared at a time, as in `rank_at_k`.

    Examples:
        >>> metric = RankAtK(top_k=(1,))
        >>> metric.update(torch.eye(3), torch.eye(3), torch.arange(3))
        >>> metric.compute()
        {'text_to_image_rank_1': tensor(1.), 'image_to_text_rank_1': tensor(1.)}
    """

    full_state_update = False
    image_features: list[Tensor]
    text_features: list[Tensor]
    groups: list[Tensor]

    def __init__(self, top_k: Sequence[int] = (1, 5, 10), chunk_size: int = CHUNK, **options: Any) -> None:
        super().__init__(**options)
        self.top_k = tuple(top_k)
        self.chunk_size = chunk_size
        for name in ("image_features", "text_features", "groups"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, image_features: Tensor, text_features: Tensor, groups: Tensor) -> None:
        """Add n pairs: features are float, shape (n, D); groups are int64, shape (n,)."""
        self.image_features.append(image_features.detach())  # a graph would keep the activations of the model
        self.text_features.append(text_features.detach())
        self.groups.append(groups)

    def compute(self) -> dict[str, Tensor]:
        """Return ``{direction}_rank_{k}`` for both directions and every k."""
        image, text = dim_zero_cat(self.image_features), dim_zero_cat(self.text_features)
        groups = dim_zero_cat(self.groups)
        figures = {}
        for direction, queries, gallery in (("text_to_image", text, image), ("image_to_text", image, text)):
            values = rank_at_k(queries, gallery, groups, groups, self.top_k, chunk_size=self.chunk_size)
            figures.update({f"{direction}_rank_{k}": value for k, value in zip(self.top_k, values, strict=True)})
        return figures
