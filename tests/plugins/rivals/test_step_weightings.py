"""Training with the weightings that see the step: checkpoints, new clusters, repeated batches, two processes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch
import torch.distributed as dist

from clip_negatives.host import hookspecs
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives.testing import parametrize_with_checks
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.training.loss_parameters import LossParameters
from clip_negatives_plugins import learned_temperature, xbm
from clip_negatives_plugins import softclip as softclip_plugin
from clip_negatives_plugins.learned_temperature.weighting import LearnedTemperature
from clip_negatives_plugins.softclip.weighting import softclip
from clip_negatives_plugins.xbm.weighting import Xbm
from tests import ranks
from tests.info_nce import features
from tests.plugins.rivals.tiny_training import B, N, Training

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.keeps_global_rng]

FACTORIES = {"learned_temperature": LearnedTemperature, "xbm": lambda: Xbm(size=40, start=0.3), "softclip": softclip}
each = pytest.mark.parametrize("name", FACTORIES)


@parametrize_with_checks("loss_weighting", LearnedTemperature, Xbm, softclip)
def test_weightings_pass_the_kit(plugin, check) -> None:
    check(plugin)


@each
def test_a_model_is_trained(name: str) -> None:
    training = Training(FACTORIES[name]())
    before = {key: part.clone() for key, part in training.loss.named_parameters()}
    first, last = training.epoch(0), training.epoch(1)
    assert sum(last) < sum(first)
    assert bool(before) == (name == "learned_temperature")
    assert all(not torch.equal(part, before[key]) for key, part in training.loss.named_parameters())


@each
def test_a_checkpoint_continues_to_the_bit(name: str) -> None:
    whole, stopped, resumed = (Training(FACTORIES[name]()) for _ in range(3))
    whole.epoch(0)
    stopped.epoch(0)
    resumed.load_state(copy.deepcopy(stopped.state()))
    assert resumed.epoch(1) == whole.epoch(1)


@each
def test_new_clusters_keep_parameters_and_queue(name: str) -> None:
    whole, changed = Training(FACTORIES[name]()), Training(FACTORIES[name]())
    whole.epoch(0)
    changed.epoch(0)
    parameters = list(changed.loss.parameters())
    changed.loss.set_terms(FACTORIES[name]()(make_blobs(N, dim=24)))  # --refresh-every gives features of another length
    assert all(map(lambda one, other: one is other, parameters, changed.loss.parameters()))
    assert changed.epoch(1) == whole.epoch(1)


@each
def test_a_repeated_batch_changes_the_state_once(name: str) -> None:
    once, twice = Training(FACTORIES[name]()), Training(FACTORIES[name]())
    batches = torch.arange(4 * B).view(4, B)
    for step, ids in enumerate(batches):
        expected = once.call(ids, 4 + step)
        expected.backward()
        for again in (False, True, True):
            loss = twice.call(ids, 4 + step, again=again)
            loss.backward()
            assert torch.equal(loss, expected)
    for stored, other in zip(once.loss.buffers(), twice.loss.buffers(), strict=True):
        assert torch.equal(stored, other)


@pytest.mark.parametrize("fused", [False, True])
def test_state_of_a_scalar_parameter_goes_to_its_device(fused: bool) -> None:
    """The counts of steps stay on the CPU, unless the optimizer is fused."""
    loss = torch.nn.Module()
    loss.scalar = torch.nn.Parameter(torch.zeros((), device="meta"))
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], fused=fused)
    own = LossParameters(loss, optimizer)
    own.load_state({"scalar/step": torch.tensor(3.0), "scalar/exp_avg": torch.tensor(0.5)})
    devices = {key: part.device.type for key, part in optimizer.state[loss.scalar].items()}
    assert devices == {"step": "meta" if fused else "cpu", "exp_avg": "meta"}


def _loss(name: str, **options: Any) -> NegativesClipLoss:
    return NegativesClipLoss(terms=FACTORIES[name]()(make_blobs(N)), **options).train()


def _steps(loss: NegativesClipLoss, part: slice) -> dict[str, Any]:
    """Return loss, gradients of the loss's parameters, buffers after four steps, the factors moved before the last one."""
    losses = []
    for step in range(4):
        x, y = (side.detach()[part].float().requires_grad_() for side in features(B, 4, seed=step))
        ids = ((torch.arange(B) + step * B // 2) * 5 % N)[part]
        loss.zero_grad()
        value = loss(x, y, torch.tensor(9.0), samples=BatchSamples(ids=ids).at(5 + step, 10))
        value.backward()
        losses.append(value.detach())
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter -= 0.1 * parameter.grad
    parameters = dict(loss.named_parameters())
    return {
        "losses": torch.stack(losses),
        "features": torch.stack([x.grad, y.grad]),
        "gradients": {key: part.grad for key, part in parameters.items()},
        "parameters": {key: part.detach() for key, part in parameters.items()},
        "buffers": dict(loss.named_buffers()),
    }


def _process(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), {}
    for name in FACTORIES:
        for local_loss in (False, True):
            loss = _loss(name, local_loss=local_loss, gather_with_grad=True, rank=rank, world_size=2)
            found[name, local_loss] = _steps(loss, slice(rank * B // 2, (rank + 1) * B // 2))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    ranks.run(2, _process, folder, log=folder / "log")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@each
@pytest.mark.parametrize("local_loss", [False, True])
def test_two_processes_are_as_one(name: str, local_loss: bool, processes: list[dict[Any, Any]]) -> None:
    """Averaged over processes, losses and gradients are those of one process; parameters and queues are equal on both."""
    found, expected = [process[name, local_loss] for process in processes], _steps(_loss(name), slice(B))
    torch.testing.assert_close((found[0]["losses"] + found[1]["losses"]) / 2, expected["losses"])
    torch.testing.assert_close(torch.cat([process["features"] for process in found], dim=1) / 2, expected["features"])
    for process in found:  # the gradients of the loss's parameters are averaged as they are computed
        for kind in ("gradients", "parameters", "buffers"):
            torch.testing.assert_close(process[kind], expected[kind], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(found[0]["buffers"][key], part) for key, part in found[1]["buffers"].items())
    assert all(torch.equal(found[0]["parameters"][key], part) for key, part in found[1]["parameters"].items())


def test_each_is_registered_by_its_own_hook() -> None:
    manager = pluggy.PluginManager("clip_negatives")
    manager.add_hookspecs(hookspecs)
    for plugin in (learned_temperature, softclip_plugin, xbm):
        manager.register(plugin)
    registered = manager.hook.clip_negatives_register_loss_weightings()
    assert sorted(name for factories in registered for name in factories) == sorted(FACTORIES)
