"""Descriptions of the tensors of loss terms, and checks of their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clip_negatives.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


INTEGERS = ("torch.int64", "torch.int32")  # by name, because this module does not import torch


@dataclass(frozen=True, slots=True)
class TermField:
    """Description of one tensor of `LossTerms`; defines how buffers, moves, checks and operator arguments treat it.

    Attributes:
        kind: "sample": an entry for each sample; "cluster": an entry for each cluster, shared by all samples.
        shapes: allowed shapes, one letter for each dimension; N is the number of samples, the empty string a scalar.
        integer: whether it holds integers (int64 or int32) or floating-point numbers.
    """

    kind: Literal["sample", "cluster"]
    shapes: tuple[str, ...]
    integer: bool = False


def check_range(name: str, values: Tensor, low: float, high: float, also: str = "") -> None:
    """Check that all values of a field are within low .. high; InputError if not, also for NaN."""
    if values.numel() and not bool(((values >= low) & (values <= high)).all()):  # NaN is neither
        raise InputError(
            f"terms.{name} must be within {low:g} .. {high:g}{also}, got {values.min():g} .. {values.max():g}. Use other "
            "options of the weighting."
        )


def check_tensor(name: str, value: Tensor, field: TermField, n_samples: int | None, device: torch.device | None) -> None:
    """Check dtype, shape and device of a field; InputError if they do not fit."""
    if not (str(value.dtype) in INTEGERS if field.integer else value.is_floating_point()):
        raise InputError(f"{name} must be {'int64' if field.integer else 'floating-point'}, got {value.dtype}.")
    if value.ndim not in map(len, field.shapes):
        shapes = " or ".join(f"({', '.join(shape)}{',' if len(shape) == 1 else ''})" for shape in field.shapes)
        raise InputError(f"{name} must have shape {shapes}, got {tuple(value.shape)}.")
    if field.kind == "sample" and value.ndim > 0 and len(value) != n_samples:
        raise InputError(
            f"{name} has {len(value)} samples, the batch has {n_samples}. Pass the terms of the batch: terms.take(index)."
        )
    if device is not None and value.device != device:
        raise InputError(f"{name} is on {value.device}, the features are on {device}. Move them: terms.to(features.device).")
