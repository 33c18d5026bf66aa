"""distilled equals its formula, written as loops over Python floats."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives import BatchSamples, NegativesClipLoss
from clip_negatives.errors import InputError
from clip_negatives_plugins.distilled.weighting import distilled

B, SCALE, BIAS = 5, 7.0, -0.5


def features(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(B, 6, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    return x, y


def naive(x: Tensor, y: Tensor, taught: tuple[Tensor, Tensor], mass: float) -> float:
    total = 0.0
    for own, others, teacher, partners in ((x, y, taught[0], taught[1]), (y, x, taught[1], taught[0])):
        for i in range(B):
            z = [SCALE * float(own[i] @ others[j]) + BIAS for j in range(B)]
            seen = [math.exp(SCALE * float(teacher[i] @ partners[j])) for j in range(B)]
            targets = [(1 - mass) * (i == j) + mass * seen[j] / sum(seen) for j in range(B)]
            total += math.log(sum(map(math.exp, z))) - sum(t * logit for t, logit in zip(targets, z, strict=True))
    return total / (2 * B)


@pytest.mark.parametrize("mass", [0.0, 0.4, 1.0])
def test_equals_its_formula(mass: float) -> None:
    (x, y), taught = features(0), features(1)
    samples = BatchSamples(ids=torch.arange(B)).with_teacher(*taught)
    loss = NegativesClipLoss(terms=distilled(mass=mass)(None))
    x.requires_grad_()
    found = loss(x, y, torch.tensor(SCALE), torch.tensor(BIAS), samples=samples)
    assert float(found) == pytest.approx(naive(x, y, taught, mass), rel=1e-6)
    step = 1e-6
    gradient = torch.autograd.grad(found, x)[0][0, 0]
    moved = x.detach().clone()
    moved[0, 0] += step
    assert float(gradient) == pytest.approx((naive(moved, y, taught, mass) - naive(x, y, taught, mass)) / step, rel=1e-3)


def test_refused() -> None:
    x, y = features(0)
    with pytest.raises(InputError, match="needs a teacher, and there is none"):
        NegativesClipLoss(terms=distilled()(None))(x, y, torch.tensor(SCALE), samples=BatchSamples(ids=torch.arange(B)))
    samples = BatchSamples(ids=torch.arange(B)).with_teacher(x, y)
    with pytest.raises(InputError, match="mass"):
        NegativesClipLoss(terms=distilled(mass=2.0)(None))(x, y, torch.tensor(SCALE), samples=samples)
