"""The log-weights b of a block of incorrect pairs, looked up; never more than the block is held."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.interfaces import LossTerms


def block(images: LossTerms, texts: LossTerms, dtype: torch.dtype) -> Tensor:
    """Return b for every image of `images` (R samples) with every text of `texts` (C samples), shape (R, C).

    Equals ``image_table[a_i, a_j] + text_table[c_i, c_j] - <factors_i, factors_j>``; absent parts count 0.
    """
    parts = []
    for labels, table in (("image_labels", "image_table"), ("text_labels", "text_table")):
        values = getattr(images, table)
        if values is not None:
            # Rows first: (R, K) is small, and the second look-up then reads within one row of it.
            found = values.to(dtype).index_select(0, getattr(images, labels))
            parts.append(found.index_select(1, getattr(texts, labels)))
    if images.factors is not None and texts.factors is not None:
        parts.append(-(images.factors.to(dtype) @ texts.factors.to(dtype).T))
    total = parts[0]
    for part in parts[1:]:
        total.add_(part)
    return total


def pairs(terms: LossTerms, image_index: Tensor, text_index: Tensor) -> Tensor:
    """Return b of explicit pairs, image ``image_index[m]`` with text ``text_index[m]``, float32, shape (M,)."""
    total = torch.zeros(image_index.shape, device=image_index.device)
    for labels, table in (("image_labels", "image_table"), ("text_labels", "text_table")):
        values = getattr(terms, table)
        if values is not None:
            of = getattr(terms, labels)
            total = total + values[of[image_index], of[text_index]]
    if terms.factors is not None:
        total = total - (terms.factors[image_index] * terms.factors[text_index]).sum(dim=1)
    return total


def mean_one_shift(weights: Tensor, dim: int) -> Tensor:
    """Return what to subtract from b so that the kept weights have mean 1 along `dim`; 0 where none is kept.

    Args:
        weights: b, shape (R, C), with -inf where a pair is removed or is the positive, which is not counted.
        dim: 1 for one shift a row, 0 for one a column.

    Returns:
        Shape (R,) or (C,).
    """
    kept = weights.isfinite().sum(dim=dim)
    shift = weights.logsumexp(dim=dim) - kept.to(weights.dtype).log()
    # Where nothing is kept both terms are -inf and their difference is not a number.
    return shift.masked_fill(kept == 0, 0.0)
