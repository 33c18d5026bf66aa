from __future__ import annotations

import math

import pytest
import torch

from clip_negatives import hold_temperature
from clip_negatives.errors import InputError


@pytest.mark.parametrize("shape", [(), (1,)])
def test_held_through_training(shape: tuple[int, ...]) -> None:
    """The optimizer is AdamW without decay of the scale, as open_clip's; another parameter learns."""
    scale = torch.nn.Parameter(torch.full(shape, 2.6592))
    other = torch.nn.Parameter(torch.ones(3))
    hold_temperature(scale, 0.1)
    optimizer = torch.optim.AdamW([{"params": [other]}, {"params": [scale], "weight_decay": 0.0}], lr=0.1)
    for _ in range(5):
        (scale.exp() * other).sum().backward()
        optimizer.step()
        assert torch.equal(scale.grad, torch.zeros(shape))
        optimizer.zero_grad()
    assert torch.equal(scale, torch.full(shape, math.log(10)))
    assert not torch.equal(other, torch.ones(3))


def test_scale_that_does_not_learn_is_set() -> None:
    scale = torch.zeros(())
    hold_temperature(scale, 0.1)
    assert scale.item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("temperature", [0.0, 0.009, 1.01, -1.0, math.nan])
def test_out_of_range(temperature: float) -> None:
    scale = torch.nn.Parameter(torch.zeros(()))
    with pytest.raises(InputError, match=r"temperature of 0\.01 \.\. 1"):
        hold_temperature(scale, temperature)
    assert scale.item() == 0
