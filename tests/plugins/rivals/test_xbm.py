"""xbm against a queue kept in Python lists, in float64."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives_plugins.xbm.weighting import Xbm
from tests.conftest import make_clusters
from tests.info_nce import features, gradients

N, B, SCALE, BIAS, STEPS = 30, 6, 5.0, -0.5, 10
IDS = [torch.randperm(N, generator=torch.Generator().manual_seed(step))[:B] for step in range(STEPS)]
GROUPS = torch.arange(N) // 3


def step(loss: NegativesClipLoss, number: int, *, total: int | None = STEPS) -> tuple[torch.Tensor, ...]:
    x, y = features(B, 4, seed=number)
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (SCALE, BIAS))
    samples = BatchSamples(ids=IDS[number]).at(number, total)
    return loss(x, y, scale, bias, samples=samples), x, y, scale


def loss_of(size: int, start: float, clusters: Clusters | None) -> NegativesClipLoss:
    return NegativesClipLoss(terms=Xbm(size=size, start=start)(clusters))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("size", "start"), [(15, 0.0), (4, 0.0), (100, 0.0), (15, 0.45)])
def test_by_loops(size: int, start: float, grouped: bool) -> None:
    clusters = replace(make_clusters(N, 6, 5), groups=GROUPS) if grouped else None
    loss, same = loss_of(size, start, clusters), 0
    queues: dict[str, deque[tuple[int, list[float]]]] = {"image": deque(maxlen=size), "text": deque(maxlen=size)}
    for number in range(STEPS):
        value, x, y, _ = step(loss, number)
        rows, ids = {"image": x.tolist(), "text": y.tolist()}, IDS[number].tolist()
        total = 0.0
        for modality, other in (("image", "text"), ("text", "image")):
            for i, anchor in enumerate(rows[modality]):
                negatives = list(rows[other])
                for sample, earlier in queues[other] if number / STEPS >= start else ():
                    mate = sample // 3 == ids[i] // 3 if grouped else sample == ids[i]
                    same += mate
                    negatives += [] if mate else [earlier]
                z = [SCALE * math.fsum(map(math.prod, zip(anchor, row, strict=True))) + BIAS for row in negatives]
                total += math.log(sum(map(math.exp, z))) - z[i]
        assert value.item() == pytest.approx(total / (2 * B), rel=1e-6)
        for modality, queue in queues.items():
            queue += [(sample, torch.tensor(row).tolist()) for sample, row in zip(ids, rows[modality], strict=True)]
    assert same > 0


def test_an_empty_queue_is_info_nce_and_so_is_the_time_before_the_start() -> None:
    loss = loss_of(20, 0.35, None)
    for number in range(5):
        value, x, y, scale = step(loss, number)
        logits, target = scale * x @ y.T, torch.arange(B)
        expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        if number < 4:
            torch.testing.assert_close(value, expected)
            for one, other in zip(gradients(value, x, y, scale), gradients(expected, x, y, scale), strict=True):
                torch.testing.assert_close(one, other)
        else:
            assert value > expected + 0.1
    assert int(loss.anchor_loss.text.pushed) == 5 * B


def test_gradients_stop_at_the_queue() -> None:
    """The gradient is that of InfoNCE with the earlier features as constants."""
    loss = loss_of(50, 0.0, None)
    _, first_x, first_y, _ = step(loss, 0)
    value, x, y, scale = step(loss, 1)
    shared = IDS[1][:, None] == IDS[0]
    assert shared.any()
    losses = []
    for anchors, others, earlier in ((x, y, first_y), (y, x, first_x)):
        further = (scale * anchors @ earlier.detach().float().double().T).masked_fill(shared, -torch.inf)
        losses.append(F.cross_entropy(torch.cat([scale * anchors @ others.T, further], dim=1), torch.arange(B)))
    expected = sum(losses) / 2
    torch.testing.assert_close(value, expected)
    for one, other in zip(gradients(value, x, y, scale), gradients(expected, x, y, scale), strict=True):
        torch.testing.assert_close(one, other)


def test_the_start_needs_the_length_of_the_training() -> None:
    step(loss_of(20, 0.0, None), 0, total=None)
    with pytest.raises(InputError, match="progress of the training is unknown"):
        step(loss_of(20, 0.1, None), 0, total=None)


@pytest.mark.filterwarnings("ignore:The loss is in evaluation mode")
def test_no_call_in_evaluation_changes_the_queue() -> None:
    loss = loss_of(20, 0.0, None)
    step(loss.eval(), 0)
    assert int(loss.anchor_loss.text.pushed) == 0


@pytest.mark.parametrize("options", [{"size": 0}, {"start": -0.1}, {"start": 1.1}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        Xbm(**options)


def test_samples_without_ids_are_all_different() -> None:
    """As in a stream without clusters, whose samples have the id -1."""
    values = []
    for unknown in (True, False):
        loss = loss_of(15, 0.0, None)
        for number in range(3):
            ids = torch.full((B,), -1) if unknown else torch.arange(B) + B * number
            x, y = features(B, 4, seed=number)
            value = loss(x, y, torch.tensor(SCALE, dtype=torch.float64), samples=BatchSamples(ids=ids))
        values.append(value.item())
    assert values[0] == values[1]
    assert values[0] > NegativesClipLoss()(x, y, torch.tensor(SCALE, dtype=torch.float64)).item()
