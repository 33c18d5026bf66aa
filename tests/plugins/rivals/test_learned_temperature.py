"""learned_temperature against its formula, in float64, and what its robust loss finds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives_plugins.learned_temperature.weighting import LearnedTemperature
from tests.info_nce import features, gradients

N, B, SCALE, BIAS = 40, 9, 6.0, -0.5
IDS = torch.randperm(N, generator=torch.Generator().manual_seed(3))[:B]


def loss_of(*, random: bool = False, **options: float) -> NegativesClipLoss:
    """Return the loss; with `random`, its parameters are not the first ones."""
    loss, generator = NegativesClipLoss(terms=LearnedTemperature(**options)(None)), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loss.parameters() if random else ():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return loss


def inputs() -> tuple[Tensor, ...]:
    x, y = features(B, 4)
    return x, y, *(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (SCALE, BIAS))


def value_of(loss: NegativesClipLoss, *parts: Tensor) -> Tensor:
    return loss(*parts, samples=BatchSamples(ids=IDS))


def naive_factors(loss: NegativesClipLoss, modality: str, live: Tensor, limit: float) -> tuple[Tensor, list[Tensor]]:
    """Return the factors of the anchors, and the parameters that they depend on, in float64."""
    network = dict(loss.anchor_loss.get_submodule(modality).named_parameters())
    weight, last, shift = leaves = [network[name].detach().double().requires_grad_() for name in ("weight", "last", "shift")]
    width, factors = len(last), []
    projection = torch.randn(live.shape[1], width, generator=torch.Generator().manual_seed(1)).double()
    for row in live.detach():
        projected = [sum(row[d] * projection[d, k] for d in range(len(row))) for k in range(width)]
        units = [torch.tanh(sum(projected[m] * weight[m, k] for m in range(width))) for k in range(width)]
        factors.append(limit ** torch.tanh(sum(unit * last[k] for k, unit in enumerate(units)) + shift))
    return torch.stack(factors), leaves


def test_at_first_it_is_info_nce() -> None:
    parts = inputs()
    x, y, scale, bias = parts
    loss = loss_of()
    logits, target = scale * x @ y.T + bias, torch.arange(B)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    value = value_of(loss, *parts)
    torch.testing.assert_close(value, expected)
    for one, other in zip(gradients(value, x, y, scale), gradients(expected, x, y, scale), strict=True):
        torch.testing.assert_close(one, other)
    for modality in ("image", "text"):
        assert float(loss.logged[f"{modality}_temperature"]) == pytest.approx(1 / SCALE)


@pytest.mark.parametrize(("rho", "limit"), [(0.5, 4.0), (0.2, 1.5)])
def test_value_and_gradients_by_loops(rho: float, limit: float) -> None:
    """The model gets the gradient of InfoNCE with constant factors; each factor gets ``(KL - rho log(G - 1)) / f^2``."""
    loss, parts = loss_of(random=True, rho=rho, limit=limit, width=5), inputs()
    x, y, scale, _ = parts
    value = value_of(loss, *parts)
    total = torch.zeros((), dtype=torch.float64)
    found = torch.autograd.grad(value, list(loss.parameters()), retain_graph=True)
    by_name = {name: part for (name, _), part in zip(loss.named_parameters(), found, strict=True)}
    for modality, live, cosines in (("image", x, x @ y.T), ("text", y, y @ x.T)):
        factors, leaves = naive_factors(loss, modality, live, limit)
        slopes = []
        for i in range(B):
            f = float(factors[i].detach())
            assert 1 / limit < f < limit
            z = [f * scale * cosines[i, j] for j in range(B)]
            total = total + (torch.stack(z).exp().sum().log() - z[i]) / f / (2 * B)
            weights = [math.exp(float(z[j].detach())) for j in range(B) if j != i]
            shares = [weight / sum(weights) for weight in weights]
            divergence = sum(share * math.log(share * (B - 1)) for share in shares)
            slopes.append((divergence - rho * math.log(B - 1)) / f**2 / (2 * B))
        expected = torch.autograd.grad((factors * torch.tensor(slopes, dtype=torch.float64)).sum(), leaves)
        for name, slope in zip(("weight", "last", "shift"), expected, strict=True):
            got = by_name[f"anchor_loss.{modality}.{name}"].double()
            torch.testing.assert_close(got, slope, rtol=1e-4, atol=1e-7)
        mean = float((1 / (SCALE * factors.detach())).mean())
        assert float(loss.logged[f"{modality}_temperature"]) == pytest.approx(mean, rel=1e-5)
    torch.testing.assert_close(value, total, rtol=1e-6, atol=1e-7)
    for one, other in zip(gradients(value, x, y, scale), gradients(total, x, y, scale), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rho", [0.1, 0.3])
def test_the_divergence_becomes_rho(rho: float) -> None:
    """With a fixed model, the networks bring each anchor to the divergence rho, within the limits: no collapse."""
    loss, parts = loss_of(rho=rho, limit=30.0, width=16), [part.detach() for part in inputs()]
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        value_of(loss, *parts).backward()
        optimizer.step()
    x, y = parts[:2]
    for modality, live, cosines in (("image", x, x @ y.T), ("text", y, y @ x.T)):
        factors = naive_factors(loss, modality, live, 30.0)[0].detach()
        weighted = (factors[:, None] * SCALE * cosines)[~torch.eye(B, dtype=torch.bool)].view(B, B - 1)
        shares = weighted.softmax(1)
        divergences = (shares * (shares * (B - 1)).log()).sum(1)
        torch.testing.assert_close(divergences, torch.full_like(divergences, rho * math.log(B - 1)), rtol=0.1, atol=0.0)
        assert factors.std() > 0.01


@pytest.mark.parametrize("options", [{"rho": 0.0}, {"rho": 1.0}, {"limit": 1.0}, {"width": 0}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        LearnedTemperature(**options)
