"""Checks of the arguments of the loss. They never read the values of tensors: that would wait for a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributed as dist

from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.losses.kernels.pairs import Extras
from clip_negatives.terms import LossTerms


def check_features(x: Tensor, y: Tensor, all_x: Tensor, all_y: Tensor, offset: int, chunk_size: int | None) -> None:
    """Check that shapes, dtypes and devices of all features fit together."""
    if x.ndim != 2 or x.shape != y.shape or 0 in x.shape:
        raise InputError(f"Image and text features must have one shape (B, D), got {tuple(x.shape)} and {tuple(y.shape)}.")
    if all_x.shape != all_y.shape or all_x.shape[1:] != x.shape[1:]:
        shapes = f"shape (G, {x.shape[1]}), got {tuple(all_x.shape)} and {tuple(all_y.shape)}"
        raise InputError(f"Features of all processes must have one {shapes}. Gather images and texts over the same processes.")
    if not 0 <= offset <= len(all_x) - len(x):
        raise InputError(f"candidates.offset must be within 0 .. {len(all_x) - len(x)} (G - B), got {offset}.")
    if not all(features.is_floating_point() for features in (x, y, all_x, all_y)):
        raise InputError(f"Features must be floating-point, got {x.dtype} and {y.dtype}.")
    if not (x.device == y.device == all_x.device == all_y.device):
        devices = {"image": x, "text": y, "candidate image": all_x, "candidate text": all_y}
        places = ", ".join(f"{name} on {features.device}" for name, features in devices.items())
        raise InputError(f"All features must be on one device, got {places}.")
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size must be at least 1, got {chunk_size}.")


def check_ring(supported: bool, terms: LossTerms) -> None:
    """Check that the ring supports the options and the terms, and that there are processes."""
    if not (supported and dist.is_initialized()):
        needs = (
            "a torch.distributed process group, text_anchors=True, gathered=False, no candidates and no extra texts or images"
        )
        raise InputError(f"ring=True needs {needs}.")
    if terms.sparse:
        raise UnsupportedError("ring=True does not work with tables of neighbouring clusters. Leave ring out.")


def check_extras(kind: str, extra: Extras | None, own: Tensor, n_samples: int, terms: LossTerms) -> None:
    """Check the tensors and the options of extra texts or images; `n_samples` are the samples of all processes."""
    if extra is None:
        return
    shape = (max((1, *extra.features.shape[:1])), own.shape[1])
    _check_tensor(f"Features of extra {kind}", extra.features, own.dtype, shape, own.device)
    if (extra.own_ids is None) != (extra.ids is None):
        raise InputError("Extras has only one of own_ids and ids. Give both or neither.")
    for name, ids, size in (("own_ids", extra.own_ids, len(own)), ("ids", extra.ids, len(extra.features))):
        if ids is not None:
            _check_tensor(f"Extras.{name}", ids, torch.int64, (size,), own.device)
    if not extra.log_weight < math.inf:
        raise InputError(f"Extras.log_weight must be a number below inf, got {extra.log_weight}.")
    if extra.positive and (kind == "images" or terms.targeted or len(extra.features) % n_samples):
        raise InputError(
            "Only extra texts can be positive, the same number for each sample, and without targets by similarity. Use "
            "positive=False or a weighting without targets."
        )


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device:
        actual = f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        raise InputError(f"{name} must be {dtype} of shape {shape} on {device}, got {actual}.")


def check_candidate_terms(terms: LossTerms, all_terms: LossTerms | None) -> LossTerms:
    """Return the terms of the candidates, after a check that both terms have the same per-sample fields."""
    if all_terms is None and not terms.per_sample():
        return terms
    names, all_names = (set() if part is None else set(part.per_sample()) for part in (terms, all_terms))
    if all_terms is None or names != all_names:
        missing = ", ".join(sorted(names ^ all_names))
        raise InputError(f"terms and candidates.terms must both have {missing}, or neither. Gather them with the features.")
    for name in names:
        own, other = getattr(terms, name), getattr(all_terms, name)
        if own.shape[1:] != other.shape[1:] or own.dtype != other.dtype:
            raise InputError(f"terms.{name} and candidates.terms.{name} differ in dtype or in their second dimension.")
    return all_terms


def one_number(name: str, value: Tensor | float, device: torch.device) -> Tensor:
    """Return a scale or a bias as a tensor of one element on `device`."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InputError(f"{name} must be one number, got shape {tuple(value.shape)}.")
    return torch.as_tensor(value, device=device)
