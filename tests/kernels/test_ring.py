"""The ring: two and three processes against one, labels, weights and every treatment included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clip_negatives.errors import InputError
from clip_negatives.functional import weighted_info_nce
from clip_negatives.interfaces import LossTerms
from clip_negatives.loss import NegativesClipLoss
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
        "all": LossTerms(**_parts(weights(n)), normalize=True, groups=groups, positive_rate=rates, **LIVE),
    }


def _parts(terms):
    names = ("image_labels", "image_table", "text_labels", "text_table", "factors")
    return {name: getattr(terms, name) for name in names}


def _leaves(part, n):
    x, y = (side.detach()[part].clone().requires_grad_() for side in features(n, D))
    return [x, y, *(torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (5.0, -1.0))]


def _process(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    part, found = slice(rank * B, (rank + 1) * B), {}
    for name, terms in _cases(world * B).items():
        inputs = _leaves(part, world * B)
        loss = NegativesClipLoss(rank=rank, world_size=world, terms=terms, ring=True, backend="chunked", chunk_size=3)
        value = loss(*inputs, index=torch.arange(world * B)[part])
        found[name] = [value.detach(), *gradients(value, *inputs)]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ring"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2])
        mp.spawn(_process, args=(request.param, folder), nprocs=request.param)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", ["plain", "weighted", "normalized", "all"])
def test_equals_one_process(found, name):
    world = len(found)
    n = world * B
    terms = _cases(n)[name]
    inputs = _leaves(slice(0, n), n)
    whole = weighted_info_nce(*inputs, terms=terms, backend="torch")
    x, y, scale, bias = gradients(whole, *inputs)
    losses = torch.stack([each[name][0] for each in found])
    torch.testing.assert_close(losses.mean(), whole.detach())
    # Gradients of the sum of the losses, which are world times their mean; DDP divides by world.
    torch.testing.assert_close(torch.cat([each[name][1] for each in found]), x * world)
    torch.testing.assert_close(torch.cat([each[name][2] for each in found]), y * world)
    torch.testing.assert_close(sum(each[name][3] for each in found), scale * world)
    torch.testing.assert_close(sum(each[name][4] for each in found), bias * world)


def test_needs_processes():
    x, y = features(4, 3)
    with pytest.raises(InputError, match=r"torch\.distributed to be initialised with ring=True"):
        weighted_info_nce(x, y, 5.0, ring=True)
