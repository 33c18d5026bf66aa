"""Losses that no table of log-weights says: what they are handed at each step, and what they are made of.

A weighting whose terms are known before training returns `clip_negatives.interfaces.LossTerms`, which kernels sum without a
B x B matrix. One that looks at the model's own similarities in a way of its own, or that remembers something of every sample,
returns an `AnchorLoss` instead: a module that is handed all logits of a step, as plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EQUAL = 1e-6
"""Frozen features whose cosine is less below 1 than this are equal."""


def _same(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class Where:
    """Say which samples meet in a step.

    Attributes:
        index: sample of each anchor, int64, shape (B,).
        candidates: sample of each candidate, int64, shape (G,).
        offset: the positive of anchor i is candidate ``offset + i``.
        gather: returns the rows of every process in the order of their ranks; itself where every process has all anchors.
    """

    index: Tensor
    candidates: Tensor
    offset: int = 0
    gather: Callable[[Tensor], Tensor] = _same


@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """Hold the anchors of a step, images or texts, against the candidates of the other modality.

    B anchors, G candidates. One process, or a global loss: G = B and the offset is 0. With ``local_loss`` the anchors are
    this process's and the candidates those of all processes.

    Attributes:
        modality: "image" where images are told from texts, "text" the other way around; each step has both.
        cosines: what the model thinks now, the live similarity, differentiable, float32 or float64, shape (B, G), -1 .. 1.
        logits: ``scale * cosines + bias``, differentiable, shape (B, G).
        scale: factor of the cosines, a scalar.
        bias: added to every logit, a scalar.
        where: which samples the anchors and candidates are.
    """

    modality: str
    cosines: Tensor
    logits: Tensor
    scale: Tensor
    bias: Tensor
    where: Where

    @property
    def positive(self) -> Tensor:
        """Return the logit of each anchor's own pair, shape (B,)."""
        return self.logits.diagonal(self.where.offset)

    @property
    def negatives(self) -> Tensor:
        """Return which pairs are incorrect, bool, shape (B, G): all but each anchor's own."""
        return torch.ones_like(self.logits, dtype=torch.bool).diagonal_scatter(
            self.logits.new_zeros(len(self.logits), dtype=torch.bool), self.where.offset
        )

    def remember(self, state: Tensor, values: Tensor) -> None:
        """Write a value for each anchor of every process into `state`, shape (N,), at its sample."""
        state[self.where.gather(self.where.index)] = self.where.gather(values.detach().to(state.dtype))


class AnchorLoss(nn.Module):
    """Compute a loss for each anchor; subclasses define `forward`.

    Persistent buffers are state: they survive a new clustering, and the training command stores them beside open_clip's
    checkpoints. What comes from the clusters, as frozen features, is better kept as a plain attribute.

    State moves on once for each batch. Gradient accumulation calls the loss for the same samples again and again, once for the
    gradients of each micro-batch; before each of those calls `begin` takes back what the one before wrote, so that all of them
    read the state from before the batch. It can do so where state is kept in buffers, and where `forward` writes to one of
    N rows only at the samples of the step, as `Anchors.remember` does.

    Attributes:
        n_samples: N, where the loss knows something of each sample; indices are then held to it.
    """

    n_samples: int | None = None
    _before: tuple[Tensor, dict[str, Tensor]] | None = None

    @torch.no_grad()
    def begin(self, index: Tensor, *, again: bool = False) -> None:
        """Keep the state that a step is going to write over, or put back what was kept where the same batch comes `again`.

        Called by `clip_negatives.loss.NegativesClipLoss` before the two calls of a step.

        Args:
            index: samples of the step, of all processes, int64, shape (G,).
            again: the samples are those of the call before, for the gradients of another part of them.
        """
        if again and self._before is not None:
            samples, kept = self._before
            for name, part in kept.items():
                buffer = self.get_buffer(name)
                buffer[samples if self._by_sample(buffer) else ...] = part
            return
        self._before = (
            index,
            {name: buffer[index] if self._by_sample(buffer) else buffer.clone() for name, buffer in self.named_buffers()},
        )

    def _by_sample(self, buffer: Tensor) -> bool:
        return buffer.ndim > 0 and len(buffer) == self.n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        """Return the loss of each anchor, shape (B,), differentiable in ``anchors.logits``.

        Called twice a step, for images and for texts; the loss of the step is the mean over all anchors of both.
        """
        raise NotImplementedError


def info_nce(anchors: Anchors, *, log_weights: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
    """Return ``log sum_j exp(z_ij + b_ij) - sum_j T_ij z_ij`` of each anchor, shape (B,).

    Args:
        anchors: a step's.
        log_weights: b, shape (B, G), -inf removes a pair; each anchor's own pair is never weighted. None is 0.
        targets: T, shape (B, G), rows sum to 1; None is each anchor's own pair.

    Examples:
        >>> x, index = torch.eye(2), torch.arange(2)
        >>> images, texts = anchors(x, x, x, x, 2.0, None, Where(index, index))
        >>> info_nce(images)
        tensor([0.1269, 0.1269])
    """
    weighted = anchors.logits
    if log_weights is not None:
        weighted = weighted + log_weights.to(weighted.dtype).masked_fill(~anchors.negatives, 0.0)
    if targets is None:
        return weighted.logsumexp(1) - anchors.positive
    return weighted.logsumexp(1) - (targets.to(weighted.dtype) * anchors.logits).sum(1)


def anchors(
    x: Tensor, y: Tensor, all_x: Tensor, all_y: Tensor, scale: Tensor | float, bias: Tensor | float | None, where: Where
) -> Iterator[Anchors]:
    """Yield the images of a step against all texts, then its texts against all images.

    Args:
        x: image features, unit norm, shape (B, D).
        y: text features, unit norm, shape (B, D).
        all_x: image features of the candidates, shape (G, D).
        all_y: text features of the candidates, shape (G, D).
        scale: factor of the cosines, one element.
        bias: added to every logit, one element.
        where: which samples they are.
    """
    for modality, one, others in (("image", x, all_y), ("text", y, all_x)):
        cosines = one @ others.T
        cosines = cosines.to(torch.promote_types(cosines.dtype, torch.float32))  # whatever autocast made of them
        factor, shift = (torch.as_tensor(value).to(cosines).reshape(()) for value in (scale, 0.0 if bias is None else bias))
        yield Anchors(modality, cosines, factor * cosines + shift, factor, shift, where)


def frozen_cosines(features: Tensor, where: Where, like: Tensor, *, candidates: Tensor | None = None) -> Tensor:
    """Return the frozen similarity r_ij of anchors and candidates, on the device and in the dtype of `like`, shape (B, G).

    Args:
        features: unit norm, shape (N, D), possibly memory-mapped: only the rows of the step are read.
        where: which samples they are.
        like: a tensor of the step.
        candidates: features of the candidates, shape (N, D); None takes `features`.
    """
    sides = (features, where.index), (features if candidates is None else candidates, where.candidates)
    one, others = (side[index.to(side.device)].to(like.device, like.dtype) for side, index in sides)
    return one @ others.T


def frozen_distances(alike: Tensor) -> Tensor:
    """Return ``1 - max(r, 0)`` of frozen similarities r, exactly 0 where r is 1 but for rounding.

    The cosine of two equal float32 features is 1 in some pairs and less by some 1e-7 in others; a logarithm makes of the
    one that the pair is removed, and of the other that it is kept with a weight of nothing.

    Examples:
        >>> frozen_distances(torch.tensor([-0.5, 0.25, 0.9999999, 1.0000001]))
        tensor([1.0000, 0.7500, 0.0000, 0.0000])
    """
    return (1 - alike.clamp(min=0.0)).masked_fill(alike > 1 - EQUAL, 0.0)


def mean_one(log_weights: Tensor, negatives: Tensor) -> Tensor:
    """Shift log-weights so that the weights of the negatives of each anchor that are kept have mean 1.

    Args:
        log_weights: shape (B, G), -inf removes a pair.
        negatives: which pairs are incorrect, bool, shape (B, G).

    Returns:
        Shape (B, G), -inf where there is no negative.

    Examples:
        >>> mean_one(torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[False, True, True]]))
        tensor([[-inf, 0., 0.]])
    """
    log_weights = log_weights.masked_fill(~negatives, -torch.inf)
    kept = (log_weights > -torch.inf).sum(1, keepdim=True)
    shift = log_weights.logsumexp(1, keepdim=True) - kept.clamp(min=1).log()
    return log_weights - shift.masked_fill(kept == 0, 0.0)
