"""softclip equals its formula, written as loops over Python floats."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.errors import InputError
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives_plugins.softclip.weighting import softclip
from tests.info_nce import features, gradients

B, SCALE, BIAS = 7, 6.0, -0.5


def loss_of(**options: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y = features(B, 4)
    loss = NegativesClipLoss(terms=softclip(**options)(None))
    scale, bias = (torch.tensor(value, dtype=torch.float64) for value in (SCALE, BIAS))
    return loss(x, y, scale, bias, samples=BatchSamples(ids=torch.arange(B))), x, y


@pytest.mark.parametrize("options", [{}, {"mass": 0.7, "temperature": 0.4}, {"mass": 1.0}])
def test_equals_its_formula(options: dict[str, float]) -> None:
    value, x, y = loss_of(**options)
    mass, temperature = options.get("mass", 0.2), options.get("temperature", 0.1)
    total = 0.0
    for anchors, others in ((x.tolist(), y.tolist()), (y.tolist(), x.tolist())):
        for i in range(B):
            z = [SCALE * math.fsum(map(math.prod, zip(anchors[i], other, strict=True))) + BIAS for other in others]
            near = [math.exp(math.fsum(map(math.prod, zip(anchors[i], peer, strict=True))) / temperature) for peer in anchors]
            target = [mass * near[j] / sum(near) + (1 - mass) * (j == i) for j in range(B)]
            log_sum = math.log(sum(map(math.exp, z)))
            total -= sum(target[j] * (z[j] - log_sum) for j in range(B))
    assert value.item() == pytest.approx(total / (2 * B), rel=1e-9)


def test_targets_have_no_gradient() -> None:
    value, x, y = loss_of(mass=0.6, temperature=0.3)
    own = torch.eye(B, dtype=torch.float64)
    targets = [0.4 * own + 0.6 * (side @ side.T / 0.3).softmax(1).detach() for side in (x, y)]
    logits = SCALE * x @ y.T
    expected = (F.cross_entropy(logits, targets[0]) + F.cross_entropy(logits.T, targets[1])) / 2
    for one, other in zip(gradients(value, x, y), gradients(expected, x, y), strict=True):
        torch.testing.assert_close(one, other)


def test_without_mass_it_is_info_nce() -> None:
    value, x, y = loss_of(mass=0.0)
    logits, target = SCALE * x @ y.T, torch.arange(B)
    torch.testing.assert_close(value, (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)


@pytest.mark.parametrize("options", [{"mass": 1.1}, {"temperature": 0.0}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        loss_of(**options)
