"""The loss as a module that stands in the place of `open_clip.ClipLoss`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clip_negatives.anchors import AnchorLoss, Where, anchors
from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.functional import weighted_info_nce
from clip_negatives.gather import gather, gather_features
from clip_negatives.terms import TABLES, TENSORS_OF_TERMS, LossTerms

FIELDS_OF_TERMS = ("normalize", "hardness", "margin", "attract", "positive_weight")
"""The attributes of `LossTerms` that are no tensors."""


class NegativesClipLoss(nn.Module):
    """Compute `open_clip.ClipLoss` with log-weights on the incorrect pairs.

    Constructor and call are those of `open_clip.ClipLoss`; what is new is keyword-only. Without terms, or with neutral
    ones, the result is that of `open_clip.ClipLoss`. The terms are buffers: they move with the module and are part of
    its ``state_dict``, which loads into a module built without them. What belongs to samples is looked up wherever it
    is; tables are moved to the features once.

    Args:
        local_loss: compute the loss of this process's samples against all, not of all against all.
        gather_with_grad: let gradients flow through the gathering of features.
        cache_labels: taken for compatibility; there is nothing to cache.
        rank: this process.
        world_size: number of processes; features and indices are gathered where it is over 1.
        use_horovod: not supported.
        terms: log-weights of the data set, or a loss of each anchor, from a loss weighting; None weighs nothing.
        batch_index: returns the sample indices of the batch, int64, shape (B,), on whichever device; called once a
            forward where no index is given and the terms are not neutral. What belongs to samples is looked up where
            it is: an index on a GPU is waited for if that is the CPU, one on the CPU never.
        text_anchors: see `clip_negatives.functional.weighted_info_nce`.
        extra_texts: E, texts that come with each sample beyond its own, see `clip_negatives.interfaces.ExtraTexts`.
        text_ids: returns a number for each text and those that come with it, int64, shape (B, 1 + E), the same for equal texts;
            an extra text that is the image's own is then left out for it. Called once a forward with extra texts.
        ring: with several processes, let the texts of the others pass by instead of gathering all samples: the loss and the
            gradients are those of ``local_loss`` with ``gather_with_grad``, the memory that of two processes' samples.
        backend: see `clip_negatives.functional.weighted_info_nce`.
        chunk_size: the same.

    Raises:
        UnsupportedError: horovod is asked for, or extra texts for the ring, or a backend, the ring or extra texts for a loss of
            each anchor, which is handed all logits of a batch.

    Examples:
        >>> features = torch.nn.functional.normalize(torch.eye(3), dim=1)
        >>> NegativesClipLoss()(features, features, torch.tensor(3.0), output_dict=True)
        {'contrastive_loss': tensor(0.0949)}
    """

    image_labels: Tensor | None
    image_table: Tensor | None
    text_labels: Tensor | None
    text_table: Tensor | None
    factors: Tensor | None
    anchor_loss: AnchorLoss | None

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        terms: LossTerms | AnchorLoss | None = None,
        batch_index: Callable[[], Tensor] | None = None,
        text_anchors: bool = True,
        extra_texts: int = 0,
        text_ids: Callable[[], Tensor] | None = None,
        ring: bool = False,
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
        self.text_anchors = text_anchors
        self.extra_texts = extra_texts
        self.text_ids = text_ids
        self.ring = ring
        self.backend = backend
        self.chunk_size = chunk_size
        if ring and extra_texts:
            raise UnsupportedError(
                "Expected a loss without the ring for a sampler that adds texts, got ring=True. Leave it out."
            )
        self.anchor_loss = None
        self._handed_out: int | None = None
        self.set_terms(LossTerms() if terms is None else terms)

    def set_terms(self, terms: LossTerms | AnchorLoss) -> None:
        """Take other log-weights, or another loss of each anchor, after re-clustering; what the old one remembers stays."""
        old, self.anchor_loss = self.anchor_loss, terms if isinstance(terms, AnchorLoss) else None
        if self.anchor_loss is not None and (self.ring or self.backend not in ("auto", "torch")):
            asked = "the ring" if self.ring else f"backend {self.backend}"
            raise UnsupportedError(
                f"Expected backend auto or torch for a weighting that is handed all logits, got {asked}. Leave it out."
            )
        if self.anchor_loss is not None and self.extra_texts:
            raise UnsupportedError(
                "Expected a weighting of tables, groups, margin or hardness for a sampler that adds texts, got one that is "
                "handed all logits of a batch. Take uniform or weighted_infonce."
            )
        if old is not None and type(old) is type(self.anchor_loss):
            self.anchor_loss.load_state_dict(old.state_dict())
        terms = terms if isinstance(terms, LossTerms) else LossTerms()
        self._others = LossTerms(**{name: getattr(terms, name) for name in FIELDS_OF_TERMS})
        for name in TENSORS_OF_TERMS:
            self.register_buffer(name, getattr(terms, name))

    @property
    def terms(self) -> LossTerms:
        """Return the log-weights of the data set."""
        return dataclasses.replace(self._others, **{name: getattr(self, name) for name in TENSORS_OF_TERMS})

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        *,
        index: Tensor | None = None,
        again: bool | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of a batch.

        Args:
            image_features: unit norm, shape (B, D).
            text_features: unit norm, shape (B, D); with E extra texts ((1 + E) B, D), each text followed by those that come
                with it, as the wrapped loader hands them out.
            logit_scale: factor of the cosines, exp already applied.
            logit_bias: added to every logit.
            output_dict: return ``{"contrastive_loss": loss}``.
            index: sample indices of the batch, int64, shape (B,); None asks `batch_index`. Where the terms are tables without
                labels (`LossTerms.for_stream`), image and text cluster of each sample, shape (B, 2), -1 for one without.
            again: the batch is that of the call before, as gradient accumulation makes them: a loss that remembers something
                moves on only once for both. None asks `batch_index`, where it counts what was handed out.

        Raises:
            InputError: the terms need an index and there is none, or it does not fit the batch or the data set.
        """
        if self.anchor_loss is not None:
            again = self._comes_again(index) if again is None else again
            loss = self._by_anchor(self.anchor_loss, image_features, text_features, logit_scale, logit_bias, index, again)
            return {"contrastive_loss": loss} if output_dict else loss
        terms = self.terms
        batch = None if terms.neutral else self._batch_terms(index, image_features)
        how: dict[str, Any] = {"backend": self.backend, "chunk_size": self.chunk_size, "text_anchors": self.text_anchors}
        if self.extra_texts:
            text_features, extra = self._split(text_features, len(image_features))
            how |= extra
        if self.world_size == 1 or self.ring:
            how["ring"] = self.world_size > 1
            loss = weighted_info_nce(image_features, text_features, logit_scale, logit_bias, terms=batch, **how)
        else:
            loss = self._gathered(image_features, text_features, logit_scale, logit_bias, batch, how)
        return {"contrastive_loss": loss} if output_dict else loss

    def _by_anchor(
        self, loss: AnchorLoss, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, index: Tensor | None, again: bool
    ) -> Tensor:
        """Return the mean of the losses of all anchors, images and, if they are anchors, texts."""
        mine = everyone = _move(self._index(index, len(x), loss.n_samples), x.device).long()
        all_x, all_y = x, y
        shared = self.world_size > 1
        if shared:
            everyone = self._of_all(mine)
            grads = {"local_loss": self.local_loss, "with_grad": self.gather_with_grad}
            all_x, all_y = (gather_features(side, self.rank, self.world_size, **grads) for side in (x, y))
        loss.begin(everyone, again=again)
        if shared and self.local_loss:
            where = Where(mine, everyone, self.rank * len(x), self._of_all)
        else:
            x, y, where = all_x, all_y, Where(everyone, everyone)
        told = anchors(x, y, all_x, all_y, scale, bias, where)
        return torch.cat([loss(each) for each in told if self.text_anchors or each.modality == "image"]).mean()

    def _comes_again(self, index: Tensor | None) -> bool:
        """Return whether no batch was handed out since the last call."""
        count = getattr(self.batch_index, "handed_out", None) if index is None else None
        before, self._handed_out = self._handed_out, count
        return count is not None and count == before

    def _split(self, text_features: Tensor, n: int) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Return the features of the n texts, and what the loss takes of the extra texts of all processes."""
        each = 1 + self.extra_texts
        if len(text_features) != n * each:
            raise InputError(
                f"Expected {n * each} text features, of {n} texts and {self.extra_texts} more with each, got "
                f"{len(text_features)}. Hand the model all texts of the wrapped loader's batch."
            )
        texts = text_features.view(n, each, -1)
        extra = texts[:, 1:].flatten(0, 1)
        own_ids = extra_ids = None
        if self.text_ids is not None:
            ids = _move(self.text_ids(), text_features.device)
            own_ids, extra_ids = ids[:, 0], ids[:, 1:].flatten()
        if self.world_size > 1:
            # This process's own keep their gradients, whichever loss is asked for.
            extra = gather_features(extra, self.rank, self.world_size, local_loss=False, with_grad=self.gather_with_grad)
            if own_ids is not None and extra_ids is not None:
                own_ids = own_ids if self.local_loss else self._of_all(own_ids.contiguous())
                extra_ids = self._of_all(extra_ids)
        return texts[:, 0], {"extra_text_features": extra, "text_ids": own_ids, "extra_text_ids": extra_ids}

    def _of_all(self, rows: Tensor) -> Tensor:
        """Return the rows of every process, without gradients."""
        return torch.cat(gather(rows, self.world_size))

    def _gathered(
        self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, batch: LossTerms | None, how: dict[str, Any]
    ) -> Tensor:
        """Return the loss against the samples of all processes."""
        grads = {"local_loss": self.local_loss, "with_grad": self.gather_with_grad}
        all_x, all_y = (gather_features(side, self.rank, self.world_size, **grads) for side in (x, y))
        # Every rank has the same tables, so only what belongs to samples travels.
        everyone = None
        if batch is not None:
            everyone = batch.map_samples(self._of_all)
        if not self.local_loss:
            return weighted_info_nce(all_x, all_y, scale, bias, terms=everyone, gathered=True, **how)
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
            **how,
        )

    def _batch_terms(self, index: Tensor | None, features: Tensor) -> LossTerms:
        """Return the terms of the batch, on the device of the features."""
        if self.terms.n_samples is None and not self.terms.by_label:
            return self.terms
        for name in TABLES:
            table = getattr(self, name)
            if table is not None and table.device != features.device:
                self.register_buffer(name, _move(table, features.device))
        terms = self.terms
        if terms.by_label:
            return terms.with_labels(_move(self._labels(index, len(features)), features.device))
        found = self._index(index, len(features), terms.n_samples or 0)
        return terms.map_samples(lambda part: _move(part[_move(found, part.device)], features.device))

    def _labels(self, index: Tensor | None, batch_size: int) -> Tensor:
        """Return the labels of the batch, which stand in the place of its index."""
        labels = self.batch_index() if index is None and self.batch_index is not None else index
        if labels is None or labels.shape != (batch_size, 2) or labels.dtype not in (torch.int64, torch.int32):
            told = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise InputError(
                f"Expected image and text cluster of each of the {batch_size} samples, int64, shape ({batch_size}, 2), as the "
                f"terms are tables alone, got {told}. Give loss(..., index=labels), or take terms with labels."
            )
        return labels

    def _index(self, index: Tensor | None, batch_size: int, n_samples: int | None) -> Tensor:
        """Return the index of the batch.

        Its values are checked where N is known and that neither waits for a device nor, in a compiled graph, for a number.
        """
        if index is None and self.batch_index is not None:
            index = self.batch_index()
        if index is None:
            raise InputError(
                "Expected the sample indices of the batch, which this weighting needs, got none. "
                "Give loss(..., index=index), or let clip_negatives.attach wrap the loader."
            )
        if index.shape != (batch_size,) or index.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"Expected an int64 sample index for each of the {batch_size} features, got {index.dtype} of shape "
                f"{tuple(index.shape)}."
            )
        if (
            n_samples is not None
            and index.device.type == "cpu"
            and batch_size
            and not torch.compiler.is_compiling()
            and not 0 <= int(index.min()) <= int(index.max()) < n_samples
        ):
            raise InputError(
                f"Expected sample indices within 0 .. {n_samples - 1}, the samples that were clustered, got "
                f"{int(index.min())} .. {int(index.max())}. Prepare the clusters from the data that is trained on."
            )
        return index

    def get_extra_state(self) -> dict[str, Any]:
        """Return what ``state_dict`` holds beside the buffers."""
        return {name: getattr(self._others, name) for name in FIELDS_OF_TERMS}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take what `get_extra_state` returned."""
        self._others = LossTerms(**state)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for buffers that this module was built without, or of another shape, before they are loaded."""
        if prefix + "_extra_state" in state_dict:  # else it is the state of something else: keep what is here
            device = next((buffer.device for buffer in self.buffers()), None)
            for name in TENSORS_OF_TERMS:
                stored = state_dict.get(prefix + name)
                self.register_buffer(name, None if stored is None else torch.empty_like(stored, device=device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; waits only where the copy would else be read before it has arrived."""
    return tensor.to(device, non_blocking=device.type != "cpu")
