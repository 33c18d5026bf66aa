"""The loss as a module that stands in the place of `open_clip.ClipLoss`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed.nn
from torch import Tensor, nn
from torch import distributed as dist

from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.functional import weighted_info_nce
from clip_negatives.interfaces import LossTerms

TENSORS = ("image_labels", "image_table", "text_labels", "text_table", "factors")
"""The tensors of `LossTerms`, which are buffers of the module."""


class NegativesClipLoss(nn.Module):
    """Compute `open_clip.ClipLoss` with log-weights on the incorrect pairs.

    Constructor and call are those of `open_clip.ClipLoss`; what is new is keyword-only. Without terms, or with neutral ones,
    the result is that of `open_clip.ClipLoss`. The terms are buffers: they move with the module and are part of its
    ``state_dict``.

    Args:
        local_loss: compute the loss of this process's samples against all, not of all against all.
        gather_with_grad: let gradients flow through the gathering of features.
        cache_labels: taken for compatibility; there is nothing to cache.
        rank: this process.
        world_size: number of processes; features and indices are gathered where it is over 1.
        use_horovod: not supported.
        terms: log-weights of the data set, from a loss weighting; None is uniform.
        batch_index: returns the sample indices of the batch, int64, shape (B,), on whichever device; called once a forward
            where no index is given and the terms are not neutral.
        backend: see `clip_negatives.functional.weighted_info_nce`.
        chunk_size: the same.

    Raises:
        UnsupportedError: horovod is asked for.

    Example:
        >>> features = torch.nn.functional.normalize(torch.eye(3), dim=1)
        >>> NegativesClipLoss()(features, features, torch.tensor(10.0), output_dict=True)
        {'contrastive_loss': tensor(9.0796e-05)}
    """

    image_labels: Tensor | None
    image_table: Tensor | None
    text_labels: Tensor | None
    text_table: Tensor | None
    factors: Tensor | None

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        terms: LossTerms | None = None,
        batch_index: Callable[[], Tensor] | None = None,
        backend: str = "auto",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise UnsupportedError("Expected training with torch.distributed, got --horovod. Start it with torchrun.")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.batch_index = batch_index
        self.backend = backend
        self.chunk_size = chunk_size
        self.set_terms(terms or LossTerms())

    def set_terms(self, terms: LossTerms) -> None:
        """Take other log-weights, after re-clustering."""
        self._normalize = terms.normalize
        for name in TENSORS:
            self.register_buffer(name, getattr(terms, name))

    @property
    def terms(self) -> LossTerms:
        """Return the log-weights of the data set."""
        return LossTerms(**{name: getattr(self, name) for name in TENSORS}, normalize=self._normalize)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        *,
        index: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of a batch.

        Args:
            image_features: unit norm, shape (B, D).
            text_features: unit norm, shape (B, D).
            logit_scale: factor of the cosines, exp already applied.
            logit_bias: added to every logit.
            output_dict: return ``{"contrastive_loss": loss}``.
            index: sample indices of the batch, int64, shape (B,); None asks `batch_index`.

        Raises:
            InputError: the terms need an index and there is none, or it does not fit the batch or the data set.
        """
        terms = self.terms
        batch = None if terms.neutral else terms.take(self._index(index, image_features, terms))
        scale = {"backend": self.backend, "chunk_size": self.chunk_size}
        if self.world_size == 1:
            loss = weighted_info_nce(image_features, text_features, logit_scale, logit_bias, terms=batch, **scale)
        else:
            loss = self._gathered(image_features, text_features, logit_scale, logit_bias, batch, scale)
        return {"contrastive_loss": loss} if output_dict else loss

    def _gathered(
        self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, batch: LossTerms | None, more: dict[str, Any]
    ) -> Tensor:
        """Return the loss against the samples of all processes."""
        all_x, all_y = self._gather(x), self._gather(y)
        # Every rank has the same tables, so only what belongs to samples travels.
        everyone = None if batch is None else batch.map_samples(lambda part: torch.cat(_gather_plain(part, self.world_size)))
        if not self.local_loss:
            return weighted_info_nce(all_x, all_y, scale, bias, terms=everyone, gathered=True, **more)
        return weighted_info_nce(
            x,
            y,
            scale,
            bias,
            terms=batch,
            all_image_features=all_x,
            all_text_features=all_y,
            all_terms=everyone,
            positive_offset=self.rank * len(x),
            **more,
        )

    def _gather(self, features: Tensor) -> Tensor:
        """Return the features of all processes; gradients flow as `open_clip.ClipLoss` lets them."""
        if self.gather_with_grad:
            return torch.cat(torch.distributed.nn.all_gather(features), dim=0)
        parts = _gather_plain(features.detach(), self.world_size)
        if not self.local_loss:
            parts[self.rank] = features  # else no gradient would reach this process's features
        return torch.cat(parts, dim=0)

    def _index(self, index: Tensor | None, features: Tensor, terms: LossTerms) -> Tensor:
        """Return the index of the batch on the device of the features, checked where that costs no waiting."""
        if index is None and self.batch_index is not None:
            index = self.batch_index()
        if index is None:
            raise InputError(
                "Expected the sample indices of the batch, which this weighting needs, got none. Give loss(..., index=index), "
                "or let clip_negatives.attach wrap the loader."
            )
        if index.shape != (len(features),):
            raise InputError(
                f"Expected one sample index for each of the {len(features)} features, got shape {tuple(index.shape)}."
            )
        n = terms.n_samples or 0
        if index.device.type == "cpu" and not 0 <= int(index.min()) <= int(index.max()) < n:
            raise InputError(
                f"Expected sample indices within 0 .. {n - 1}, the samples that were clustered, got {int(index.min())} .. "
                f"{int(index.max())}. Prepare the clusters from the data that is trained on."
            )
        held_on = next(tensor.device for tensor in (terms.image_labels, terms.text_labels, terms.factors) if tensor is not None)
        return index.to(held_on, non_blocking=True)

    def get_extra_state(self) -> dict[str, bool]:
        """Return what ``state_dict`` holds beside the buffers."""
        return {"normalize": self._normalize}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        """Take what `get_extra_state` returned."""
        self._normalize = bool(state["normalize"])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for buffers that this module was built without, or of another shape, before they are loaded."""
        for name in TENSORS:
            stored = state_dict.get(prefix + name)
            self.register_buffer(name, None if stored is None else torch.empty_like(stored))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _gather_plain(rows: Tensor, world_size: int) -> list[Tensor]:
    """Return the rows of every process, without gradients, in the order of ranks."""
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size)]
    dist.all_gather(parts, rows.contiguous())
    return parts
