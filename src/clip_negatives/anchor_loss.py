"""Losses that loss terms cannot express: an `AnchorLoss` gets all logits of a step, in plain torch.

Use `clip_negatives.terms.LossTerms` for weights that are known before training: kernels sum them without a B x B matrix. Use an
`AnchorLoss` for weights that depend on the model's similarities in a new way, or on a state of each sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clip_negatives.errors import InputError, PluginError
from clip_negatives.feature_queue import FeatureQueue
from clip_negatives.step import Step
from clip_negatives.step import Towers as Towers

if TYPE_CHECKING:
    from clip_negatives.anchors import Anchors
    from clip_negatives.clusters import Clusters
    from clip_negatives.terms import LossTerms


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
    name: str = ""  # of the function of the weighting, for messages
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
        raise PluginError(f"{type(self).__name__} has no forward(anchors). Define it.")


class StepTerms(AnchorLoss):
    """Loss terms that depend on the step: `terms` is called at each step, and the kernels sum its result without all logits."""

    def terms(self, step: Step) -> LossTerms:
        """Return the terms of the B samples of this process; `step` has their features alone."""
        raise PluginError(f"{type(self).__name__} has no terms(step). Define it.")
