"""The weighted contrastive loss as a function: checks of shapes, choice of the backend."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import chunked, log_weights, reference

BACKENDS = ("auto", "torch", "chunked")
"""Names that `weighted_info_nce` takes."""

FEW_PAIRS = 256 * 256
"""Up to so many pairs "auto" takes the torch backend on the CPU.

Measured on a 2-core EPYC, D = 512, float32, CPU time of a step over open_clip's: chunked takes 1.4 for 64 x 64, 1.0
for 128 x 128, 0.84 for 256 x 256, where 1 ms is at stake, and 0.74 for 512 x 512.
"""

FEW_PAIRS_OF_ACCELERATORS = 8192 * 8192
"""The same on other devices, by memory and not measured: beyond, every matrix of float32 logits is over 256 MiB."""


def weighted_info_nce(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    terms: LossTerms | None = None,
    all_image_features: Tensor | None = None,
    all_text_features: Tensor | None = None,
    all_terms: LossTerms | None = None,
    positive_offset: int = 0,
    gathered: bool = False,
    backend: str = "auto",
    chunk_size: int | None = None,
) -> Tensor:
    """Compute InfoNCE in both directions with log-weights on the incorrect pairs.

    Equals in plain torch, with b as `LossTerms` says, 0 on the diagonal, and normalised by row in each direction if
    asked::

        z = logit_scale * image_features @ text_features.T + logit_bias
        target = torch.arange(len(z))
        (F.cross_entropy(z + b, target) + F.cross_entropy(z.T + b.T, target)) / 2

    With b = 0 it is `open_clip.ClipLoss`, to the bit on the torch backend. A row all of whose negatives are removed
    contributes 0. With `all_image_features` and `all_text_features` (``local_loss``) the rows are this process's B
    samples and the columns the G of all processes.

    Args:
        image_features: unit norm, float32, bfloat16, float16 or float64, shape (B, D).
        text_features: the same, shape (B, D).
        logit_scale: factor of the cosines, exp already applied, a number or one element.
        logit_bias: added to every logit; None is 0.
        terms: log-weights of the B samples, `LossTerms.take` of the batch; None weighs nothing.
        all_image_features: shape (G, D), given for both sides or for none.
        all_text_features: shape (G, D).
        all_terms: log-weights of the G samples.
        positive_offset: row of the G in which the first of the B samples stands.
        gathered: the features are those of all processes; ClipLoss then transposes its logits instead of computing them
            twice, which this follows so that results are equal to the bit.
        backend: "torch" (holds B x G), "chunked" (never does, any device), or "auto", see `select_backend`.
        chunk_size: rows that "chunked" takes at a time; None chooses by memory.

    Returns:
        A scalar of the precision of the sums, differentiable in features, scale and bias.

    Raises:
        InputError: shapes, dtypes or devices do not fit, or the backend is unknown.

    Examples:
        >>> x = torch.nn.functional.normalize(torch.eye(4), dim=1)
        >>> weighted_info_nce(x, x, 10.0)
        tensor(0.0001)
    """
    x, y = image_features, text_features
    if (all_image_features is None) != (all_text_features is None):
        raise InputError("Expected all_image_features and all_text_features, got one of them. Give both or none.")
    rectangle = all_image_features is not None
    all_x = x if all_image_features is None else all_image_features
    all_y = y if all_text_features is None else all_text_features
    if terms is None or terms.neutral:
        terms = all_terms = None
    elif not rectangle:
        all_terms = terms
    _check_features(x, y, all_x, all_y, positive_offset, chunk_size)
    _check_terms(terms, all_terms, x, all_x)
    scale = _one_number("logit_scale", logit_scale, x.device)
    bias = None if logit_bias is None else _one_number("logit_bias", logit_bias, x.device)
    if backend not in BACKENDS:
        raise InputError(f"Expected a backend among {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "auto":
        backend = select_backend(x.device, len(x), len(all_x))[0]
    if not rectangle and backend == "torch":
        return reference.both(x, y, scale, bias, terms, shared=gathered)
    if not rectangle:
        return chunked.both(x, y, scale, bias, terms, chunk_size=chunk_size)
    kernel = reference.rows if backend == "torch" else functools.partial(chunked.rows, chunk_size=chunk_size)
    by_image = kernel(x, all_y, scale, bias, terms, all_terms, positive_offset, images_are_rows=True)
    by_text = kernel(y, all_x, scale, bias, terms, all_terms, positive_offset, images_are_rows=False)
    return (by_image + by_text) / 2


def select_backend(device: torch.device, rows: int, columns: int) -> tuple[str, str]:
    """Return the backend that "auto" takes for a rows x columns loss, and why.

    Examples:
        >>> select_backend(torch.device("cpu"), 256, 256)
        ('torch', '65536 pairs on cpu are few: one matrix of logits is quickest')
    """
    pairs = rows * columns
    if pairs <= (FEW_PAIRS if device.type == "cpu" else FEW_PAIRS_OF_ACCELERATORS):
        return "torch", f"{pairs} pairs on {device.type} are few: one matrix of logits is quickest"
    return "chunked", f"{pairs} pairs on {device.type}: blocks need fewer products and less memory"


def pair_log_weights(terms: LossTerms, image_index: Tensor, text_index: Tensor) -> Tensor:
    """Return b of explicit pairs, before any normalisation, which only a batch has.

    Args:
        terms: log-weights of the data set.
        image_index: samples whose image it is, int64, shape (M,).
        text_index: samples whose text it is, int64, shape (M,).

    Returns:
        float32, shape (M,), in [-inf, inf).

    Raises:
        InputError: the indices are not of one shape (M,).

    Examples:
        >>> terms = LossTerms(image_labels=torch.tensor([0, 1]), image_table=torch.tensor([[0.0, -1.0], [-2.0, 0.0]]))
        >>> pair_log_weights(terms, torch.tensor([0, 1]), torch.tensor([1, 0]))
        tensor([-1., -2.])
    """
    if image_index.ndim != 1 or image_index.shape != text_index.shape:
        raise InputError(
            f"Expected image and text indices of one shape (M,), got {tuple(image_index.shape)} and {tuple(text_index.shape)}."
        )
    return log_weights.pairs(terms, image_index, text_index)


def _check_features(x: Tensor, y: Tensor, all_x: Tensor, all_y: Tensor, offset: int, chunk_size: int | None) -> None:
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


def _check_terms(terms: LossTerms | None, all_terms: LossTerms | None, x: Tensor, all_x: Tensor) -> None:
    """Refuse log-weights that are of other samples than the features, or lie on another device."""
    for name, given, features in (("terms", terms, x), ("all_terms", all_terms, all_x)):
        if (given is None) != (terms is None):
            raise InputError(f"Expected {name} beside the features of all processes, got {given}. Give both or neither.")
        if given is None:
            continue
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


def _one_number(name: str, value: Tensor | float, device: torch.device) -> Tensor:
    """Return a scale or a bias as a tensor on `device`, of one element."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InputError(f"Expected {name} of one element, got shape {tuple(value.shape)}.")
    return torch.as_tensor(value, device=device)
