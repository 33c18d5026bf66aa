"""Loss terms as buffers of a module: they move with it, are in its state, and give the terms of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clip_negatives.errors import InputError
from clip_negatives.step import BatchSamples
from clip_negatives.terms import LossTerms


class StoredTerms(nn.Module):
    """A module that holds the loss terms of a data set in its buffers.

    Attributes:
        clusters: digest of the clusters; a state of other clusters is an error. None if they are unknown.
        weighting: the weighting with all its options; a state of another weighting is an error. None if it is unknown.
    """

    clusters: str | None = None
    weighting: str | None = None

    def store(self, terms: LossTerms) -> None:
        """Keep the terms as buffers, in place of the present ones."""
        self._without_tensors = terms.replace(**dict.fromkeys(terms.tensor_fields()))
        for name in terms.tensor_fields():
            self.register_buffer(name, getattr(terms, name))

    @property
    def terms(self) -> LossTerms:
        """Return the loss terms of the data set."""
        empty = self._without_tensors
        return empty.replace(**{name: getattr(self, name) for name in empty.tensor_fields()})

    def batch_terms(self, samples: BatchSamples | None, features: Tensor) -> LossTerms:
        """Return the terms of a batch at its share of the training, on the device of its features.

        Args:
            samples: the samples of the batch; None if the terms need none.
            features: image features of the batch, shape (B, D).

        Raises:
            InputError: the terms need ids, labels or the progress of the training, and they are missing or do not fit.
        """
        progress = None if samples is None or samples.progress is None else moved(samples.progress, features.device)
        return self._unscheduled_terms(samples, features).at(progress)

    def _unscheduled_terms(self, samples: BatchSamples | None, features: Tensor) -> LossTerms:
        per_sample = self.terms.per_sample()
        for name, value in self.terms.tensors().items():
            if name not in per_sample and value.device != features.device:
                self.register_buffer(name, moved(value, features.device))
        terms = self.terms
        if terms.by_label:
            if samples is None or samples.labels is None:
                remedy = "Give loss(..., samples=BatchSamples(labels=labels)), or terms with labels."
                raise InputError(f"This weighting has tables without labels, and the batch has no labels. {remedy}")
            labels = checked_integers("labels", samples.labels, (len(features), 2))
            return terms.with_labels(moved(labels, features.device))
        if not per_sample:
            return terms
        ids = checked_ids(samples, len(features), terms.n_samples)
        return terms.map_samples(lambda value: moved(value.index_select(0, moved(ids, value.device)), features.device))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the part of ``state_dict`` that is not in buffers."""
        return {"clusters": self.clusters, "weighting": self.weighting, **self._without_tensors.options()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self.clusters = self.clusters or state.get("clusters")
        self.weighting = self.weighting or state.get("weighting")
        self._without_tensors = self._without_tensors.replace(**_options(state))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Register buffers of the stored shapes first: this module may have been built without terms."""
        if prefix + "_extra_state" in state_dict:  # otherwise the state belongs to another module: keep the buffers
            self._check_state(state_dict, prefix)
            device = next((buffer.device for buffer in self.buffers()), None)
            for name in self._without_tensors.tensor_fields():
                stored = state_dict.get(prefix + name)
                self.register_buffer(name, None if stored is None else torch.empty_like(stored, device=device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_state(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Check that a state has the terms and the clusters of this loss, if this loss has any."""
        extra, terms = state_dict[prefix + "_extra_state"], self.terms
        stored = {name: tensor for name in terms.tensor_fields() if (tensor := state_dict.get(prefix + name)) is not None}
        own = terms.tensors()
        same = own.keys() == stored.keys() and all(torch.equal(value.cpu(), stored[name].cpu()) for name, value in own.items())
        others = [
            None not in (own_name, extra.get(name)) and own_name != extra[name]
            for name, own_name in (("clusters", self.clusters), ("weighting", self.weighting))
        ]
        if any(others) or not (terms.neutral or (same and LossTerms(**_options(extra)).options() == terms.options())):
            raise InputError(
                "The state of the loss is of other clusters or of another weighting. Load it into a loss with the same "
                "clusters and weighting, or train on without it."
            )


def _options(extra_state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra_state.items() if name not in ("clusters", "weighting")}


def checked_ids(samples: BatchSamples | None, batch_size: int, n_samples: int | None) -> Tensor:
    """Return the sample ids of a batch; InputError if they are missing, or do not fit the batch or the data set."""
    if samples is None or samples.ids is None:
        remedy = "Give loss(..., samples=BatchSamples(ids=ids)), or wrap the loader with clip_negatives.attach."
        raise InputError(f"This method needs the sample ids of the batch, and there are none. {remedy}")
    ids = checked_integers("ids", samples.ids, (batch_size,))
    # Reading values of GPU tensors would wait for the GPU; in a compiled graph it would break the graph.
    checkable = ids.device.type == "cpu" and batch_size > 0 and not torch.compiler.is_compiling()
    if n_samples is not None and checkable and not 0 <= int(ids.min()) <= int(ids.max()) < n_samples:
        limits = f"0 .. {n_samples - 1}, the samples that were clustered, got {int(ids.min())} .. {int(ids.max())}"
        raise InputError(f"Sample ids must be within {limits}. Prepare the clusters from the data that you train on.")
    return ids


def checked_integers(name: str, integers: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return integers of a batch; InputError if they have another shape or another dtype than int64 or int32."""
    if integers.shape != shape or integers.dtype not in (torch.int64, torch.int32):
        actual = f"{integers.dtype} of shape {tuple(integers.shape)}"
        raise InputError(f"The {name} of {shape[0]} features must be int64 of shape {shape}, got {actual}.")
    return integers


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; only a copy to the CPU waits, because it could be read before it is complete."""
    return tensor.to(device, non_blocking=device.type != "cpu")
