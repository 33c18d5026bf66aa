"""The ring, and gathering: two and three processes against one, labels, weights and every treatment included."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

from clip_negatives.errors import InputError
from clip_negatives.interfaces import LossTerms
from clip_negatives.losses import functional
from clip_negatives.losses.backends import interpreted
from clip_negatives.losses.functional import weighted_info_nce
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from tests import ranks
from tests.info_nce import features, gradients, weights

B, D = 4, 3
LIVE = {"margin": 0.3, "hardness": 0.5}


def _cases(n):
    """Return terms by name; groups and rates belong to samples."""
    groups, rates = torch.arange(n) % 5, torch.linspace(0, 0.2, n, dtype=torch.float64)
    return {
        "plain": LossTerms(),
        "weighted": weights(n),
        "normalized": weights(n, normalize=True),
        "all": weights(n, normalize=True).replace(groups=groups, positive_rate=rates, **LIVE),
        "targets": weights(n).replace(target_factors=torch.linspace(-2, 2, 2 * n).view(n, 2), target_mass=0.3),
    }


def _leaves(part, n, dtype=torch.float64):
    x, y = (side.detach()[part].to(dtype).requires_grad_() for side in features(n, D))
    return [x, y, *(torch.tensor(v, dtype=dtype, requires_grad=True) for v in (5.0, -1.0))]


WAYS = {
    "ring": {"ring": True},
    "local": {"local_loss": True, "gather_with_grad": True},
    "gathered": {"gather_with_grad": True},
}
BACKENDS = {"chunked": torch.float64} | ({"triton": torch.float32} if interpreted() else {})


def _process(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    part, found = slice(rank * B, (rank + 1) * B), {}
    for backend, way, (name, terms) in itertools.product(BACKENDS, WAYS, _cases(world * B).items()):
        if terms.targeted and backend == "triton":
            continue  # is refused
        inputs = _leaves(part, world * B, BACKENDS[backend])
        how = {"backend": backend, "chunk_size": 3 if backend == "chunked" else None} | WAYS[way]
        loss = NegativesClipLoss(rank=rank, world_size=world, terms=terms, **how)
        value = loss(*inputs, samples=BatchSamples(ids=torch.arange(world * B)[part]))
        found[backend, way, name] = [value.detach(), *gradients(value, *inputs)]
    if interpreted():
        found["autocast"] = _seen_under_autocast(part, world * B)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _seen_under_autocast(part, n):
    """Return the type of the features that the kernels are handed."""
    from clip_negatives.losses.kernels import fused

    seen, real = [], fused.forward
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.float16):
        patch.setattr(fused, "forward", lambda inputs, *rest, **how: seen.append(inputs.x.dtype) or real(inputs, *rest, **how))
        weighted_info_nce(*_leaves(part, n, torch.float32), ring=True, backend="triton")
    return set(seen)


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    ranks.run(request.param, _process, folder, log=folder / "log")
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", ["plain", "weighted", "normalized", "all", "targets"])
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_equals_one_process(found, backend, way, name):
    if (name, backend) == ("targets", "triton"):
        pytest.skip("the triton backend has no targets by similarity")
    world, case = len(found), (backend, way, name)
    how = {"rtol": 1e-4, "atol": 1e-5} if backend == "triton" else {}
    n = world * B
    terms = _cases(n)[name]
    inputs = _leaves(slice(0, n), n)
    whole = weighted_info_nce(*inputs, terms=terms, backend="torch")
    x, y, scale, bias = gradients(whole, *inputs)
    # Gradients of the sum of the losses, which are world times their mean; DDP divides by world.
    expected = [whole.detach(), x * world, y * world, scale * world, bias * world]
    losses, *parts = zip(*(each[case] for each in found), strict=True)
    ours = [torch.stack(losses).mean(), *map(torch.cat, parts[:2]), *map(sum, parts[2:])]
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, **how)


@pytest.mark.skipif(not interpreted(), reason="no TRITON_INTERPRET=1")
def test_takes_the_precision_of_autocast(found):
    assert all(each["autocast"] == {torch.float16} for each in found)


@pytest.mark.parametrize(("ring", "columns"), [(False, 4), (True, 32)])
def test_the_backend_is_chosen_by_the_samples_of_all_processes(monkeypatch, ring, columns):
    asked = []
    monkeypatch.setattr(functional.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(functional.dist, "get_world_size", lambda: 8)
    monkeypatch.setattr(functional, "select_backend", lambda device, *shape, **how: asked.append(shape) or ("chunked", ""))
    monkeypatch.setattr(functional, "anchor_losses", lambda *given, **how: [torch.zeros(1)])
    weighted_info_nce(*(side.detach() for side in features(4, 3)), 5.0, ring=ring)
    assert asked == [(4, columns)]


def test_needs_processes():
    x, y = features(4, 3)
    with pytest.raises(InputError, match=r"ring=True needs a torch\.distributed process group"):
        weighted_info_nce(x, y, 5.0, ring=True)
