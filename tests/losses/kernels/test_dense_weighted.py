"""Losses with log-weights alone on the torch backend: equal to those of the general path, in fewer operations."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from clip_negatives.interfaces import LossTerms
from clip_negatives.losses.functional import Candidates, weighted_info_nce
from tests.info_nce import features, gradients, weights

SCALE, BIAS = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (5.0, -1.5))


class Operations(TorchDispatchMode):
    """Count the operations of torch."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def general(monkeypatch):
    """Leave the path for log-weights alone."""
    monkeypatch.setattr(LossTerms, "only_weights", False)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("candidates", [False, True])
@pytest.mark.parametrize("parts", ["it", "itf", ""])
def test_losses_and_gradients_equal_those_of_the_general_path(monkeypatch, normalize, candidates, parts):
    x, y = features(9, 4)
    terms = weights(9, normalize=normalize, parts=parts, drop=0.4)
    options = {"terms": terms, "backend": "torch", "reduction": "none"}
    if candidates:
        rows = torch.arange(3, 8)
        options |= {"terms": terms.take(rows), "candidates": Candidates(x, y, terms, 3)}

    def losses():
        own = (x[3:8], y[3:8]) if candidates else (x, y)
        losses = weighted_info_nce(*own, SCALE, BIAS, **options)
        return losses, gradients(losses @ torch.linspace(-1, 2, len(losses), dtype=torch.float64), x, y, SCALE, BIAS)

    ours = losses()
    general(monkeypatch)
    torch.testing.assert_close(ours, losses())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_as_on_the_general_path(monkeypatch, dtype):
    x, y = features(64, 16, dtype=torch.float32)
    terms = weights(64, parts="it", normalize=True)

    def losses():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = weighted_info_nce(x, y, 14.3, terms=terms, backend="torch")
        return loss, gradients(loss, x, y)

    (ours, our_grads) = losses()
    general(monkeypatch)
    theirs, their_grads = losses()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for one, other in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=(1e-6 if dtype == torch.float32 else 4e-3) * float(other.abs().max())
        )


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_are_differentiable_for_tables_too(normalize):
    terms, start = weights(5, normalize=normalize, parts="it", drop=0.0), features(5, 3)[0].detach()

    def loss(x, scale, bias, table):
        # The texts depend on the images, so that a derivative through both could be counted twice.
        return weighted_info_nce(x, x.sin(), scale, bias, terms=terms.replace(image_table=table), backend="torch")

    inputs = [start, SCALE.detach(), BIAS.detach(), terms.image_table.double()]
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


@pytest.mark.parametrize("normalize", [False, True])
def test_second_gradients_of_an_anchor_without_negatives_are_finite(normalize):
    x, y = features(4, 4)
    table = torch.tensor([[0.5, -1.0], [-torch.inf, -torch.inf]])
    terms = LossTerms(image_labels=torch.tensor([0, 1, 0, 0]), image_table=table, normalize=normalize)
    loss = weighted_info_nce(x, y, SCALE, terms=terms, backend="torch")
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    assert all(second.isfinite().all() for second in gradients(grad.square().sum(), x, y))


def test_a_small_loss_keeps_its_digits():
    x = torch.eye(4, dtype=torch.float32)
    terms = LossTerms(image_labels=torch.arange(4), image_table=torch.full((4, 4), -1.0))
    ours = weighted_info_nce(x, x, 30.0, terms=terms, backend="torch")
    torch.testing.assert_close(ours.double(), (3 * torch.tensor(-31.0, dtype=torch.float64).exp()).log1p(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("normalize", "limit"), [(False, 72), (True, 104)])
def test_a_step_takes_few_operations(normalize, limit):
    x, y = features(8, 4, dtype=torch.float32)
    scale, terms = torch.tensor(14.3, requires_grad=True), weights(8, parts="it", normalize=normalize)
    with Operations() as operations:
        gradients(weighted_info_nce(x, y, scale, terms=terms, backend="torch"), x, y, scale)
    assert operations.count <= limit, "More operations make small batches slower: ClipLoss takes 44 for the same step."


def test_frozen_features_get_no_gradient():
    x, y = features(6, 4)
    frozen = x.detach()
    loss = weighted_info_nce(frozen, y, 9.0, terms=weights(6), backend="torch")
    (alone,) = gradients(loss, y)
    both = gradients(weighted_info_nce(x, y, 9.0, terms=weights(6), backend="torch"), x, y)
    torch.testing.assert_close(alone, both[1])
    assert frozen.grad is None


def test_checkpointing_and_functional_gradients():
    x, y = (side.detach() for side in features(6, 4))
    terms = weights(6, parts="it", normalize=True)

    def loss(x):
        return weighted_info_nce(x, y, 10.0, terms=terms, backend="torch")

    leaf = x.clone().requires_grad_()
    (expected,) = gradients(loss(leaf), leaf)
    (gradient,) = gradients(checkpoint(loss, leaf, use_reentrant=False), leaf)
    assert torch.equal(gradient, expected)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
