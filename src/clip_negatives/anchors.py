"""One direction of a step: images against texts, or texts against images, with all logits in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.step import Step, StepSamples

SMALLEST = 1.2e-38  # of the differences between two similarities: the smallest normal float32


@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """The anchors of a step, images or texts, and their logits with the candidates of the other modality.

    Each of B anchors is contrasted with G candidates. With one process, or a global loss, G = B and the offset is 0. With
    ``local_loss``, the anchors are from this process and the candidates from all processes.

    Attributes:
        modality: "image" if images are contrasted with texts, "text" if texts are contrasted with images; a step has both.
        cosines: live similarity, differentiable, float32 or float64, shape (B, G), -1 .. 1.
        logits: ``scale * cosines + bias``, differentiable, shape (B, G).
        scale: factor of the cosines, a scalar.
        bias: added to every logit, a scalar.
        step: the step: its samples, features, clusters and place in the training.
    """

    modality: str
    cosines: Tensor
    logits: Tensor
    scale: Tensor
    bias: Tensor
    step: Step

    @property
    def other(self) -> str:
        """Return the modality of the candidates."""
        return "text" if self.modality == "image" else "image"

    @property
    def samples(self) -> StepSamples:
        """Return the samples of anchors and candidates."""
        return self.step.samples

    @property
    def features(self) -> Tensor:
        """Return the live features of the anchors, shape (B, D)."""
        return self.step.features.of(self.modality)

    @property
    def candidates(self) -> Tensor:
        """Return the live features of the candidates, which are of the other modality, shape (G, D)."""
        return self.step.candidates.of(self.other)

    @property
    def peers(self) -> Tensor:
        """Return the live features of all samples of the step in the modality of the anchors, shape (G, D)."""
        return self.step.candidates.of(self.modality)

    @property
    def positive(self) -> Tensor:
        """Return the logit of each anchor's own pair, shape (B,)."""
        return self.logits.diagonal(self.samples.offset)

    @property
    def negatives(self) -> Tensor:
        """Return which pairs are incorrect, bool, shape (B, G): all but each anchor's own."""
        return torch.ones_like(self.logits, dtype=torch.bool).diagonal_scatter(
            self.logits.new_zeros(len(self.logits), dtype=torch.bool), self.samples.offset
        )

    def remember(self, state: Tensor, values: Tensor) -> None:
        """Write one value for each anchor, of all processes, into `state`, shape (N,), at the anchor's sample id."""
        state[self.samples.gather(self.samples.index)] = self.samples.gather(values.detach().to(state.dtype))


def info_nce(anchors: Anchors, *, log_weights: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
    """Return ``log sum_j exp(z_ij + b_ij) - sum_j T_ij z_ij`` of each anchor, shape (B,).

    Args:
        anchors: anchors of a step.
        log_weights: b, shape (B, G), -inf removes a pair; each anchor's own pair is never weighted. None is 0.
        targets: T, shape (B, G), rows sum to 1; None is 1 for each anchor's own pair.

    Examples:
        >>> from clip_negatives.step import Towers
        >>> x, samples = Towers(torch.eye(2), torch.eye(2)), StepSamples(torch.arange(2), torch.arange(2))
        >>> images, texts = anchors(Step(samples, x, x, torch.tensor(2.0)))
        >>> info_nce(images)
        tensor([0.1269, 0.1269])
    """
    weighted = anchors.logits
    if log_weights is not None:
        own = log_weights.new_zeros(len(weighted), dtype=weighted.dtype)
        weighted = weighted + log_weights.to(weighted.dtype).diagonal_scatter(own, anchors.samples.offset)
    if targets is None:
        return weighted.logsumexp(1) - anchors.positive
    return weighted.logsumexp(1) - (targets.to(weighted.dtype) * anchors.logits).sum(1)


def anchors(step: Step) -> Iterator[Anchors]:
    """Yield the images of a step against all texts, then its texts against all images."""
    own, others = step.features, step.candidates
    cosines = _cosines(own.image, others.text)
    factor, shift = (
        torch.as_tensor(value).to(cosines).reshape(()) for value in (step.scale, 0.0 if step.bias is None else step.bias)
    )
    logits = factor * cosines + shift
    yield Anchors("image", cosines, logits, factor, shift, step)
    if own is others:
        yield Anchors("text", cosines.T, logits.T, factor, shift, step)
    else:
        cosines = _cosines(own.text, others.image)
        yield Anchors("text", cosines, factor * cosines + shift, factor, shift, step)


def _cosines(features: Tensor, candidates: Tensor) -> Tensor:
    cosines = features @ candidates.T
    return cosines.to(torch.promote_types(cosines.dtype, torch.float32))  # autocast may have made them bfloat16


def removed_above(values: Tensor, limits: Tensor) -> Tensor:
    """Return log-weights: -inf where a value is above its limit, 0 elsewhere.

    This is several times faster on the CPU than a mask.

    Args:
        values: floating point, shape (B, G).
        limits: inf keeps all pairs, dtype of `values`, shape (B, 1) or (B, G).

    Examples:
        >>> removed_above(torch.tensor([[0.1, 0.5, 0.9]]), torch.tensor([[0.5]]))
        tensor([[0., 0., -inf]])
    """
    return F.threshold((limits - values).clamp_(max=0.0), -SMALLEST, -torch.inf)


def mean_one(log_weights: Tensor, negatives: Tensor) -> Tensor:
    """Shift log-weights so that the kept negatives of each anchor have mean weight 1.

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
    # A comparison into floats is several times faster on the CPU than one into bools.
    kept = torch.gt(log_weights.detach(), -torch.inf, out=torch.empty_like(log_weights)).sum(1, keepdim=True)
    shift = log_weights.logsumexp(1, keepdim=True) - kept.clamp(min=1).log()
    return log_weights - shift.masked_fill(kept == 0, 0.0)
