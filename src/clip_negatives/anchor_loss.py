"""Losses that loss terms cannot express: an `AnchorLoss` gets all logits of a step, in plain torch.

Use `clip_negatives.terms.LossTerms` for weights that are known before training: kernels sum them without a B x B matrix. Use an
`AnchorLoss` for weights that depend on the model's similarities in a new way, or on a state of each sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_negatives.errors import InputError
from clip_negatives.feature_queue import FeatureQueue
from clip_negatives.gram import gram
from clip_negatives.step import Step, StepSamples
from clip_negatives.step import Towers as Towers

if TYPE_CHECKING:
    from clip_negatives.clusters import Clusters
    from clip_negatives.terms import LossTerms

EQUAL = 1e-6
"""Two frozen features count as equal if their cosine is above 1 minus this tolerance."""
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


@dataclass(frozen=True, slots=True, eq=False)
class _SavedRows:
    """Rows of a buffer before a step; `rows` is an index, or ... for the whole buffer."""

    module: nn.Module
    name: str
    rows: Any
    values: Tensor

    def restore(self) -> None:
        if self.rows is ...:  # a queue gets its shape at the first push
            setattr(self.module, self.name, self.values.clone())
        else:
            self.module.get_buffer(self.name)[self.rows] = self.values


class AnchorLoss(nn.Module):
    """Base class of losses that get all logits of a step; subclasses define `forward`.

    Keep the state in persistent buffers: they survive re-clustering, and the training command stores them beside open_clip's
    checkpoints. Keep data of the clusters, such as frozen features, as plain attributes.

    A batch must change the state once, but gradient accumulation calls the loss several times for the same batch. So `begin`
    restores the earlier state before each repeated call. In a buffer of N rows, `forward` may write only to the rows of the
    step's samples, as `Anchors.remember` does. Save a checkpoint after the last call for a batch, not between its calls.

    Parameters of the loss are trained with the model: the training command, the Lightning callback and `NegativesTrainer` add
    them to the optimizer; in your own loop, give the optimizer ``loss.parameters()``. They survive re-clustering, too.

    Attributes:
        n_samples: N, if the loss has a state for each sample; sample ids are then checked.
        clusters: the clusters that `Step.clusters` shall have; None if the loss needs none there.
    """

    n_samples: int | None = None
    clusters: Clusters | None = None
    _before: tuple[Tensor, list[_SavedRows]] | None = None

    @torch.no_grad()
    def begin(self, index: Tensor, *, again: bool = False) -> None:
        """Save the state that a step will overwrite, or restore it if the same batch comes again.

        `clip_negatives.losses.module.NegativesClipLoss` calls this before the two `forward` calls of a step.

        Args:
            index: samples of the step, of all processes, int64, shape (G,).
            again: whether the batch is the same as in the previous call.
        """
        if again and self._before is not None:
            ids, saved = self._before
            if len(ids) != len(index) or (index.device.type == "cpu" and not torch.equal(ids, index)):
                raise InputError("again=True, but the samples are not those of the previous call. Pass again=False.")
            for saved_rows in saved:
                saved_rows.restore()
            return
        self._before = index, list(self._overwritten(index))

    def _overwritten(self, index: Tensor) -> Iterator[_SavedRows]:
        """Yield the rows of each buffer that a step of the samples `index` may overwrite."""
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                is_queue = isinstance(module, FeatureQueue)
                rows: Any = index if not is_queue and buffer.ndim > 0 and len(buffer) == self.n_samples else ...
                is_replaced = is_queue and name == "features"  # a push makes a new tensor
                yield _SavedRows(module, name, rows, buffer if is_replaced else buffer[rows].clone())

    def take_state(self, previous: AnchorLoss) -> None:
        """Continue with the state and the parameters of a loss of the same class: an optimizer keeps its parameters."""
        own, others = (dict(loss.named_parameters(remove_duplicate=False)) for loss in (self, previous))
        try:
            if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in others.items()}:
                raise RuntimeError
            for name, parameter in others.items():
                path, _, last = name.rpartition(".")
                self.get_submodule(path).register_parameter(last, parameter)
            self.load_state_dict(previous.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"The state of {type(self).__name__} does not fit the new clusters. Its parameters and buffers must have the "
                "same shapes for all clusterings of the data."
            ) from error

    def _load_from_state_dict(self, *args: Any) -> None:
        """Forget the state before the last batch: it is not of the loaded state."""
        super()._load_from_state_dict(*args)
        self._before = None

    def forward(self, anchors: Anchors) -> Tensor:
        """Return the loss of each anchor, shape (B,), differentiable in ``anchors.logits``.

        Called twice a step, for images and for texts; the loss of the step is the mean over all anchors of both.
        """
        raise NotImplementedError


class StepTerms(AnchorLoss):
    """Loss terms that depend on the step: `terms` is called at each step, and the kernels sum its result without all logits."""

    def terms(self, step: Step) -> LossTerms:
        """Return the terms of the B samples of this process; `step` has their features alone."""
        raise NotImplementedError


def info_nce(anchors: Anchors, *, log_weights: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
    """Return ``log sum_j exp(z_ij + b_ij) - sum_j T_ij z_ij`` of each anchor, shape (B,).

    Args:
        anchors: anchors of a step.
        log_weights: b, shape (B, G), -inf removes a pair; each anchor's own pair is never weighted. None is 0.
        targets: T, shape (B, G), rows sum to 1; None is 1 for each anchor's own pair.

    Examples:
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
    log_weights = log_weights.where(negatives, -torch.inf)
    # A comparison into floats is several times faster on the CPU than one into bools.
    kept = torch.gt(log_weights.detach(), -torch.inf, out=torch.empty_like(log_weights)).sum(1, keepdim=True)
    shift = log_weights.logsumexp(1, keepdim=True) - kept.clamp(min=1).log()
    return log_weights - shift.masked_fill(kept == 0, 0.0)
