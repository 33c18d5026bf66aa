"""The loss written out by hand, and small problems to put into it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clip_negatives.losses.functional import Extras, weighted_info_nce
from clip_negatives.terms import LossTerms

BACKENDS = ("torch", "chunked")


def naive_info_nce(x: Tensor, y: Tensor, scale: float, bias: float, b: Tensor, normalize: bool = False) -> float:
    """Return the weighted loss of a square problem by loops over Python floats; b's diagonal is unused."""
    n = len(x)
    z = [
        [scale * sum(p * q for p, q in zip(x[i].tolist(), y[j].tolist(), strict=True)) + bias for j in range(n)]
        for i in range(n)
    ]
    total = 0.0
    for i in range(n):
        total += naive_row(z[i], b[i].tolist(), i, normalize)
        total += naive_row([z[j][i] for j in range(n)], b[:, i].tolist(), i, normalize)
    return total / (2 * n)


def naive_row(z: list[float], b: list[float], positive: int, normalize: bool) -> float:
    """Return the cross-entropy of one row."""
    weights = [math.exp(value) for value in b]
    kept = [j for j in range(len(z)) if j != positive and weights[j] > 0]
    mean = sum(weights[j] for j in kept) / len(kept) if normalize and kept else 1.0
    return math.log(1 + sum(weights[j] / mean * math.exp(z[j] - z[positive]) for j in kept))


def naive_treated(
    x: Tensor,
    y: Tensor,
    scale: float,
    bias: float,
    b: Tensor,
    *,
    normalize: bool = False,
    margin: float | None = None,
    positive_rate: float | list[float] | None = None,
    hardness: float = 0.0,
    groups: list[int] | None = None,
    attract: bool = True,
    positive_weight: float = 1.0,
    extra: Tensor | None = None,
) -> float:
    """Return the loss of a square problem with every treatment of its pairs, by loops over Python floats."""
    n = len(x)
    s = (x.double() @ y.double().T).tolist()
    further = [[] for _ in range(n)] if extra is None else (x.double() @ extra.double().T).tolist()
    groups = list(range(n)) if groups is None else groups
    rates = positive_rate if isinstance(positive_rate, list) else [positive_rate] * n
    total = 0.0
    for transposed in (False, True):
        for i in range(n):
            cosine = [s[j][i] if transposed else s[i][j] for j in range(n)]
            weight = [float(b[j, i] if transposed else b[i, j]) for j in range(n)]
            if not transposed:  # the images have the extra texts as well, which are of no group and not weighted
                cosine += further[i]
                weight += [0.0] * len(further[i])
            z = [scale * value + bias for value in cosine]
            mates = [j for j in range(n) if groups[j] == groups[i]]
            positives = mates if attract else [i]
            kept = [j for j in range(len(z)) if j not in mates and weight[j] > -math.inf]
            kept = [j for j in kept if margin is None or cosine[j] <= cosine[i] + margin]
            w = {j: math.exp(weight[j] + hardness * z[j]) for j in kept}
            if (normalize or hardness) and kept:
                mean = sum(w.values()) / len(kept)
                w = {j: value / mean for j, value in w.items()}
            negatives = sum(w[j] * math.exp(z[j]) for j in kept)
            if rates[i] is not None:
                mean_positive = sum(math.exp(z[j]) for j in positives) / len(positives)
                estimate = (negatives - rates[i] * len(kept) * mean_positive) / (1 - rates[i])
                negatives = max(estimate, len(kept) * math.exp(bias - scale))
            told_from = negatives + positive_weight * sum(math.exp(z[j]) for j in positives)
            if told_from > 0:
                total += math.log(told_from) - sum(z[j] for j in positives) / len(positives)
    return total / (2 * n)


def features(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return unit-norm features of images and texts that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)
    y = F.normalize(x + torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def weights(n: int, *, k: int = 3, seed: int = 0, normalize: bool = False, parts: str = "itf", drop: float = 0.2) -> LossTerms:
    """Return log-weights of n samples with asymmetric tables (i, t) and factors (f), `drop` of the tables -inf."""
    generator = torch.Generator().manual_seed(seed + 1)

    def table() -> Tensor:
        values = torch.randn(k, k, generator=generator)
        return values.masked_fill(torch.rand(k, k, generator=generator) < drop, -torch.inf)

    labels, tables = torch.randint(k, (2, n), generator=generator), (table(), table())
    return LossTerms(
        image_labels=labels[0] if "i" in parts else None,
        image_table=tables[0] if "i" in parts else None,
        text_labels=labels[1] if "t" in parts else None,
        text_table=tables[1] if "t" in parts else None,
        factors=torch.randn(n, 2, generator=generator) / 2 if "f" in parts else None,
        normalize=normalize,
    )


def dense(terms: LossTerms | None, n: int) -> Tensor:
    """Return b of every pair, float64, shape (n, n), by two loops."""
    b = torch.zeros(n, n, dtype=torch.float64)
    if terms is None:
        return b
    for i in range(n):
        for j in range(n):
            if terms.image_table is not None:
                b[i, j] += terms.image_table[terms.image_labels[i], terms.image_labels[j]]
            if terms.text_table is not None:
                b[i, j] += terms.text_table[terms.text_labels[i], terms.text_labels[j]]
            if terms.factors is not None:
                b[i, j] -= (terms.factors[i].double() * terms.factors[j].double()).sum()
    return b


def swapped(terms: LossTerms) -> LossTerms:
    """Return the terms that weigh (image j, text i) as `terms` weighs (image i, text j)."""
    return terms.transposed()


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Return the gradients of `loss`, 0 where there is none."""
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def loss_of(*inputs: Tensor | float, terms: LossTerms | None = None, extra: Tensor | None = None, **options: Any) -> Tensor:
    """Return `weighted_info_nce` with fields of the terms among the keyword arguments; None leaves a field as it is."""
    names = {field.name for field in dataclasses.fields(LossTerms)}
    fields = {name: options.pop(name) for name in list(options) if name in names}
    fields = {name: value for name, value in fields.items() if value is not None}
    if isinstance(fields.get("positive_rate"), float):
        fields["positive_rate"] = torch.tensor(fields["positive_rate"], dtype=torch.float64, device=inputs[0].device)
    extra_texts = None if extra is None else Extras(extra)
    return weighted_info_nce(*inputs, terms=(terms or LossTerms()).replace(**fields), extra_texts=extra_texts, **options)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation in the block returns."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.numel())
        return result
