"""The parameters of a loss in an optimizer that already exists."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR

from clip_negatives.training.loss_parameters import LossParameters


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def optimizer_of(towers: nn.Module, kind: type = AdamW) -> torch.optim.Optimizer:
    groups = [{"params": list(towers[0].parameters()), "weight_decay": 0.0}, {"params": list(towers[1].parameters())}]
    return kind(groups, lr=0.1, weight_decay=0.2, **({"momentum": 0.9} if kind is SGD else {}))


def step(towers: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss(towers(torch.ones(2, 3))).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_resumed_optimizer_goes_on_exactly(kind: type) -> None:
    towers, loss = model(), nn.Linear(1, 1)
    optimizer = optimizer_of(towers, kind)
    parameters = LossParameters(loss, optimizer)
    for _ in range(3):
        step(towers, loss, optimizer)
    buffer = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "towers": towers.state_dict(), "loss": loss.state_dict()}, buffer)
    own = copy.deepcopy(parameters.state())
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    assert [len(group["params"]) for group in stored["optimizer"]["param_groups"]] == [2, 2]  # as without the loss
    for load_first in (True, False):
        towers_2, loss_2 = model(), nn.Linear(1, 1)
        towers_2.load_state_dict(stored["towers"])
        loss_2.load_state_dict(stored["loss"])
        resumed = optimizer_of(towers_2, kind)
        if load_first:
            resumed.load_state_dict(copy.deepcopy(stored["optimizer"]))
        parameters_2 = LossParameters(loss_2, resumed)
        if not load_first:
            resumed.load_state_dict(copy.deepcopy(stored["optimizer"]))
        parameters_2.load_state(own)
        step(towers_2, loss_2, resumed)
        if load_first:
            step(towers, loss, optimizer)
        pairs = zip(nn.ModuleList([towers_2, loss_2]).parameters(), nn.ModuleList([towers, loss]).parameters(), strict=True)
        for mine, theirs in pairs:
            assert torch.equal(mine, theirs)


def test_the_group_has_the_learning_rate_of_the_last_group_and_no_weight_decay() -> None:
    towers, loss = model(), nn.Linear(1, 1)
    optimizer = optimizer_of(towers)
    optimizer.param_groups[-1]["lr"] = 0.05
    LossParameters(loss, optimizer)
    assert optimizer.param_groups[-1]["lr"] == 0.05
    assert optimizer.param_groups[-1]["weight_decay"] == 0
    assert [id(part) for part in optimizer.param_groups[-1]["params"]] == [id(part) for part in loss.parameters()]


@pytest.mark.parametrize("loss", [None, nn.Identity()], ids=["no loss", "no parameters"])
def test_without_parameters_nothing_changes(loss: nn.Module | None) -> None:
    optimizer = optimizer_of(model())
    parameters = LossParameters(loss, optimizer)
    assert len(optimizer.param_groups) == 2
    assert parameters.state() == {}


def test_parameters_that_the_optimizer_has_stay_there() -> None:
    loss = nn.Linear(1, 1)
    optimizer = SGD(loss.parameters(), lr=0.1)
    assert LossParameters(loss, optimizer).parameters == {}
    assert len(optimizer.param_groups) == 1


SCHEDULERS = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 10),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    "partial": lambda optimizer: LambdaLR(optimizer, functools.partial(pow, 0.5)),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.2, total_steps=10),
    "sequential": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1, total_iters=2), CosineAnnealingLR(optimizer, 8)], [2]
    ),
    "chained": lambda optimizer: ChainedScheduler([LinearLR(optimizer, 0.1, total_iters=2), CosineAnnealingLR(optimizer, 8)]),
}


@pytest.mark.parametrize("create", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_schedulers_that_exist_schedule_the_group(create: object) -> None:
    towers, loss = model(), nn.Linear(1, 1)
    optimizer = optimizer_of(towers)
    scheduler = create(optimizer)
    LossParameters(loss, optimizer, [scheduler])
    for _ in range(6):
        step(towers, loss, optimizer)
        scheduler.step()
        assert optimizer.param_groups[2]["lr"] == pytest.approx(optimizer.param_groups[1]["lr"])


@pytest.mark.parametrize("name", ["_milestones", "_schedule_phases"])
def test_lists_that_are_not_by_group_stay(name: str) -> None:
    """With as many milestones or phases as groups."""
    optimizer = optimizer_of(model())
    constants = [LinearLR(optimizer, factor, factor) for factor in (0.1, 0.2, 0.3)]
    scheduler = OneCycleLR(optimizer, 0.2, total_steps=10) if "phases" in name else SequentialLR(optimizer, constants, [2, 4])
    before = list(getattr(scheduler, name))
    LossParameters(nn.Linear(1, 1), optimizer, [scheduler])
    assert len(before) == 2
    assert getattr(scheduler, name) == before


def test_a_scheduler_of_another_optimizer_stays() -> None:
    other = LambdaLR(optimizer_of(model()), lambda epoch: 1.0)
    LossParameters(nn.Linear(1, 1), optimizer_of(model()), [other])
    assert len(other.base_lrs) == 2


@pytest.mark.parametrize("create", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_a_stored_scheduler_fits_an_optimizer_without_the_group(create: object) -> None:
    rates = []
    for stored_at in (None, 3):
        towers, loss = model(), nn.Linear(1, 1)
        optimizer = optimizer_of(towers)
        scheduler = create(optimizer)
        parameters = LossParameters(loss, optimizer, [scheduler])
        for number in range(6):
            step(towers, loss, optimizer)
            scheduler.step()
            if number == stored_at:
                state = copy.deepcopy((optimizer.state_dict(), parameters.without_own_group(scheduler.state_dict())))
                optimizer = optimizer_of(towers)
                scheduler = create(optimizer)
                optimizer.load_state_dict(state[0])
                scheduler.load_state_dict(state[1])
                parameters = LossParameters(loss, optimizer, [scheduler])
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == rates[1]
