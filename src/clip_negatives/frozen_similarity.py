"""The frozen similarity of the samples of a step: the cosine of the features that were clustered."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.gram import gram
from clip_negatives.step import StepSamples

EQUAL = 1e-6
"""Two frozen features count as equal if their cosine is above 1 minus this tolerance."""


def frozen_cosines(features: Tensor, samples: StepSamples, like: Tensor, *, candidates: Tensor | None = None) -> Tensor:
    """Return the frozen similarity r_ij of anchors and candidates, on the device and in the dtype of `like`, shape (B, G).

    If the anchors of a step are its candidates, the similarities are computed for the images, and kept for the texts.

    Args:
        features: unit norm, shape (N, D), possibly memory-mapped: only the rows of the step are read.
        samples: the samples of anchors and candidates.
        like: tensor whose device and dtype the result gets.
        candidates: features of the candidates, shape (N, D); None uses `features`.
    """
    with torch.autocast(like.device.type, enabled=False):  # in lower precision, near-duplicates would lose their distance
        if candidates is not None or samples.index is not samples.candidates or torch.compiler.is_compiling():
            others = features if candidates is None else candidates
            return _rows(features, samples.index, like) @ _rows(others, samples.candidates, like).T
        key = id(features), like.device, like.dtype
        if key not in samples._frozen:
            products = gram(_rows(features, samples.index, like))
            samples._frozen[key] = features, products  # with the features, whose id is thus of no other tensor
        cosines = samples._frozen[key][1]
        if like.ndim == 2 and like.stride(0) < like.stride(1):
            cosines = cosines.T  # equal up to rounding; operations on two matrices are faster in one memory layout
        return cosines.clone()  # the caller may change it


def _rows(features: Tensor, index: Tensor, like: Tensor) -> Tensor:
    return features.index_select(0, index.to(features.device)).to(like.device, like.dtype)


def frozen_distances(similarity: Tensor) -> Tensor:
    """Return ``1 - max(r, 0)`` of frozen similarities r, exactly 0 where r is 1 up to rounding.

    The cosine of two equal float32 features is 1, or about 1e-7 less by rounding. Without this rule, the logarithm of
    the distance would remove one pair of equal features, but keep another pair of equal features with a tiny weight.

    Examples:
        >>> frozen_distances(torch.tensor([-0.5, 0.25, 0.9999999, 1.0000001]))
        tensor([1.0000, 0.7500, 0.0000, 0.0000])
    """
    return F.threshold(1 - similarity.clamp(min=0.0), EQUAL, 0.0)
