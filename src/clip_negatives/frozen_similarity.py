"""The frozen similarity of the samples of a step: the cosine of the features that were clustered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

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
        if candidates is not None or not _kept_for_texts(samples):
            others = features if candidates is None else candidates
            return _rows(features, samples.index, like) @ _rows(others, samples.candidates, like).T
        cosines = _once_a_step(samples, like, (features,), lambda: gram(_rows(features, samples.index, like)))
        return cosines.clone()  # the caller may change it


def frozen_log_distances(parts: Sequence[Tensor], samples: StepSamples, like: Tensor) -> Tensor:
    """Return ``log(1 - max(r, 0))``, -inf for equal features; r is the largest of the frozen similarities of `parts`.

    The result must not be changed: if the anchors of a step are its candidates, it is kept for the texts.

    Args:
        parts: features, at least one, see `frozen_cosines`.
        samples: the samples of anchors and candidates.
        like: tensor whose device and dtype the result gets.
    """

    def compute() -> Tensor:
        cosines = (frozen_cosines(part, samples, like) for part in parts)
        return frozen_distances(functools.reduce(torch.maximum, cosines)).log_()

    return _once_a_step(samples, like, tuple(parts), compute, "log") if _kept_for_texts(samples) else compute()


def _kept_for_texts(samples: StepSamples) -> bool:
    return samples.index is samples.candidates and not torch.compiler.is_compiling()


def _once_a_step(
    samples: StepSamples, like: Tensor, features: tuple[Tensor, ...], compute: Callable[[], Tensor], name: str = ""
) -> Tensor:
    """Return a symmetric matrix of the step, computed for the images and kept for the texts, in the memory layout of `like`."""
    key = name, *map(id, features), like.device, like.dtype
    if key not in samples._frozen:
        samples._frozen[key] = features, compute()  # with the features, whose ids are thus of no other tensors
    matrix = samples._frozen[key][1]
    # Equal up to rounding; operations on two matrices are faster in one memory layout.
    return matrix.T if like.ndim == 2 and like.stride(0) < like.stride(1) else matrix


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
