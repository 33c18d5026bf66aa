"""Backend "torch": the loss as its formula reads. Holds the logits, as open_clip does, and the log-weights as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import log_weights


def both(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, terms: LossTerms | None, *, shared: bool) -> Tensor:
    """Return half the mean cross-entropy of the rows plus half that of the columns.

    Without log-weights this runs the operations of `open_clip.ClipLoss` in its order, so that results are equal to the
    bit: `shared` says whether it transposes one logit matrix (gathered features) or computes a second (one process).
    """
    logits = _logits(x, y, scale, bias)
    transposed = logits.T if shared else _logits(y, x, scale, bias)
    target = torch.arange(len(x), device=x.device)
    if terms is not None:
        weights = log_weights.block(terms, terms, _dtype(logits))
        logits = _weighted(logits, weights, target, terms.normalize)
        transposed = _weighted(transposed, weights.T, target, terms.normalize)
    return (F.cross_entropy(logits, target) + F.cross_entropy(transposed, target)) / 2


def rows(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    x_terms: LossTerms | None,
    y_terms: LossTerms | None,
    offset: int,
    *,
    images_are_rows: bool,
) -> Tensor:
    """Return the mean cross-entropy of the rows; `images_are_rows` says which way the log-weights are looked up."""
    logits = _logits(x, y, scale, bias)
    target = torch.arange(len(x), device=x.device) + offset
    if x_terms is not None and y_terms is not None:
        weights = log_weights.block(x_terms, y_terms, _dtype(logits), images_are_rows=images_are_rows)
        logits = _weighted(logits, weights, target, x_terms.normalize)
    return F.cross_entropy(logits, target)


def _logits(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    logits = scale * x @ y.T
    if bias is not None:
        logits += bias  # in place, as open_clip does, so that a bias of shape (1,) does not widen them under autocast
    return logits


def _weighted(logits: Tensor, weights: Tensor, target: Tensor, normalize: bool) -> Tensor:
    """Add the log-weights of the incorrect pairs to their logits."""
    weights = weights.scatter(1, target[:, None], -torch.inf)
    if normalize:
        kept = (weights > -torch.inf).sum(dim=1)
        weights = weights - log_weights.mean_one_shift(weights.logsumexp(dim=1), kept)[:, None]
    return logits + weights.scatter(1, target[:, None], 0.0)


def _dtype(logits: Tensor) -> torch.dtype:
    """Return the precision of the log-weights: at least float32, whatever autocast made of the logits."""
    return torch.promote_types(logits.dtype, torch.float32)
