"""What `clip_negatives.functional` refuses. Nothing here reads a value of a tensor, so nothing waits for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import LossTerms


def check_features(x: Tensor, y: Tensor, all_x: Tensor, all_y: Tensor, offset: int, chunk_size: int | None) -> None:
    """Refuse features whose shapes, dtypes or devices do not fit; reads no value, so it never waits for a GPU."""
    if x.ndim != 2 or x.shape != y.shape or 0 in x.shape:
        raise InputError(f"Expected image and text features of one shape (B, D), got {tuple(x.shape)} and {tuple(y.shape)}.")
    if all_x.shape != all_y.shape or all_x.shape[1:] != x.shape[1:]:
        raise InputError(
            f"Expected features of all processes of one shape (G, {x.shape[1]}), got {tuple(all_x.shape)} and "
            f"{tuple(all_y.shape)}. Gather both sides over the same processes."
        )
    if not 0 <= offset <= len(all_x) - len(x):
        raise InputError(f"Expected positive_offset within 0 .. {len(all_x) - len(x)} (G - B), got {offset}.")
    if not x.is_floating_point() or not y.is_floating_point():
        raise InputError(f"Expected floating-point features, got {x.dtype} and {y.dtype}.")
    if len({tensor.device for tensor in (x, y, all_x, all_y)}) > 1:
        raise InputError(f"Expected all features on one device, got image on {x.device} and text on {y.device}.")
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"Expected chunk_size of at least 1, got {chunk_size}.")


def check_extra(extra: Tensor, ids: Tensor | None, extra_ids: Tensor | None, y: Tensor) -> None:
    """Refuse features of extra texts that are not of the kind of the others, or numbers that are of others."""
    if extra.ndim != 2 or len(extra) == 0 or extra.shape[1] != y.shape[1] or extra.dtype != y.dtype or extra.device != y.device:
        raise InputError(
            f"Expected features of extra texts of shape (E, {y.shape[1]}), {y.dtype} on {y.device}, as those of the texts are, "
            f"got {tuple(extra.shape)}, {extra.dtype} on {extra.device}."
        )
    if (ids is None) != (extra_ids is None):
        raise InputError("Expected text_ids and extra_text_ids, got one of them. Give both or neither.")
    for name, found, size in (("text_ids", ids, len(y)), ("extra_text_ids", extra_ids, len(extra))):
        if found is not None and (found.shape != (size,) or found.dtype != torch.int64 or found.device != y.device):
            raise InputError(
                f"Expected int64 {name} of shape ({size},) on {y.device}, got {found.dtype} of shape {tuple(found.shape)} on "
                f"{found.device}."
            )


def check_terms(terms: LossTerms, all_terms: LossTerms | None, x: Tensor, all_x: Tensor) -> None:
    """Refuse terms that are of other samples than the features, or lie on another device."""
    if all_terms is None:
        raise InputError("Expected all_terms beside terms and the features of all processes, got None. Give both or neither.")
    for name, given, features in (("terms", terms, x), ("all_terms", all_terms, all_x)):
        for part in (given.image_labels, given.text_labels, given.factors):
            if part is not None and len(part) != len(features):
                raise InputError(
                    f"Expected {name} of {len(features)} samples, as many as there are features, got {len(part)}. "
                    "Take those of the batch: terms.take(index)."
                )
        for labels, table in ((given.image_labels, given.image_table), (given.text_labels, given.text_table)):
            if table is not None and (labels is None or table.ndim != 2 or table.shape[0] != table.shape[1]):
                have = "no labels" if labels is None else "labels"
                raise InputError(f"Expected {name} with a square table and labels, got {tuple(table.shape)} and {have}.")
        for tensor in (given.image_labels, given.image_table, given.text_labels, given.text_table, given.factors):
            if tensor is not None and tensor.device != features.device:
                raise InputError(
                    f"Expected {name} on {features.device}, where the features are, got {tensor.device}. "
                    "Move them: terms.to(features.device)."
                )


def check_groups(groups: Tensor | None, all_groups: Tensor | None, n: int, n_all: int) -> None:
    """Refuse groups that are of other samples than the features."""
    if (groups is None) != (all_groups is None):
        raise InputError("Expected groups and all_groups beside the features of all processes, got one of them.")
    for name, found, size in (("groups", groups, n), ("all_groups", all_groups, n_all)):
        if found is not None and found.dtype not in (torch.int64, torch.int32):
            raise InputError(f"Expected int64 {name}, got {found.dtype}.")
        if found is not None and found.shape != (size,):
            raise InputError(f"Expected {name} of shape ({size},), a group for each sample, got {tuple(found.shape)}.")


def one_number(name: str, value: Tensor | float, device: torch.device) -> Tensor:
    """Return a scale or a bias as a tensor on `device`, of one element."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InputError(f"Expected {name} of one element, got shape {tuple(value.shape)}.")
    return torch.as_tensor(value, device=device)
