"""Check loss and gradients where numbers are extreme: python benchmarks/trust/numerics.py [--small].

Every installed loss weighting meets every condition, on each backend that takes it and in each precision. It survives if loss
and gradients are finite and near those of the torch backend in float64, and the exact loss is not 0, or if it raises an error
of `clip_negatives.errors` before training. ``--small`` takes float32 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from survival import Row, counts, run_campaign
from torch import Tensor

from clip_negatives import ClipNegativesError, Clustering, Clusters, LossTerms, NegativesClipLoss, registry, similarity
from clip_negatives.sampling import epoch_generator
from clip_negatives.step import BatchSamples
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.weightings import DIM, SCALE, B, N, batch, batch_index
from clip_negatives.training.weighting import loss_terms

PRECISIONS = ("float32", "bfloat16", "float16", "autocast bfloat16", "autocast float16")
ROUNDINGS = 4.0  # allowed error of loss and gradients, in steps of the precision of the largest logit


@dataclass(frozen=True, slots=True)
class Condition:
    """Image and text features (float32, shape (B, D)), clusters and scale that a loss meets."""

    what: str
    features: tuple[Tensor, Tensor]
    scale: float = SCALE
    clusters: Clusters = field(default_factory=lambda: make_blobs(N))
    amplified: float = 1.0  # factor of the loss under autocast


def conditions() -> Iterator[Condition]:
    """Yield all conditions."""
    x, y = batch()
    same = F.normalize(torch.ones(B, DIM), dim=1)
    opposed = torch.cat([x[:-1], -y[-1:]]), torch.cat([x[:-1], y[-1:]])
    yield Condition("an ordinary batch", (x, y))
    yield Condition("a batch of one", (x[:1], y[:1]))
    yield Condition("a batch of two", (x[:2], y[:2]))
    yield Condition("logit_scale at its clamp of 100", (x, y), scale=100.0)
    yield Condition("logit_scale at 0.01", (x, y), scale=0.01)
    yield Condition("all pairs but one agree, at scale 100", opposed, scale=100.0)
    yield Condition("identical images", (same, y))
    yield Condition("identical texts", (x, same))
    yield Condition("identical images and texts", (same, same.clone()))
    yield Condition("features of zeros in some rows", (x.index_fill(0, torch.arange(4), 0.0), y))
    yield Condition("gradients multiplied by 65,536, as a GradScaler does under autocast", (x, y), amplified=65536.0)
    # Clusters of data without structure, or with nothing but one.
    same, zeros, each = F.normalize(torch.ones(N, DIM), dim=1), torch.zeros(N, dtype=torch.int64), torch.arange(N)
    one = Clustering(zeros, same[:1])
    own = Clustering(each, F.normalize(torch.randn(N, DIM, generator=epoch_generator(1, 1)), dim=1))
    changed: dict[str, dict[str, Any]] = {
        "one image cluster": {"image": one},
        "one text cluster": {"text": one},
        "one cluster of each": {"image": one, "text": one},
        "a cluster for each sample": {"image": own, "text": own},
        "identical frozen features": {"image": one, "text": one, "image_features": same, "text_features": same},
        "all texts and groups equal": {"texts": zeros, "groups": zeros},
        "no two texts or groups equal": {"texts": each, "groups": each},
    }
    for what, changes in changed.items():
        clusters = replace(make_blobs(N), **changes)
        yield Condition(what, (x, y), clusters=replace(clusters, **similarity.similarities(clusters.image, clusters.text)))


def removing(columns: int) -> LossTerms:
    """Return terms that remove all incorrect pairs of some rows, or all but those of one cluster."""
    table = torch.zeros(8, 8)
    table[:3, :columns] = -torch.inf
    return LossTerms(image_labels=torch.arange(N) % 8, image_table=table, normalize=True)


def steps(terms: Any, condition: Condition, backend: str, precision: str, *, exact: bool = False) -> list[Tensor]:
    """Return the loss and the gradients to both features and to the scale, float64.

    Features are rounded to the precision first, also where `exact` computes in float64, so that both see the same numbers.
    """
    autocast, _, name = precision.rpartition(" ")
    rounded = torch.float32 if autocast else getattr(torch, name)
    dtype = torch.float64 if exact else rounded
    sides = [side.to(rounded).to(dtype, copy=True).requires_grad_() for side in condition.features]
    scale = torch.tensor(condition.scale, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    samples = BatchSamples(ids=batch_index()[: len(sides[0])])
    mixed = bool(autocast) and not exact
    with torch.autocast("cpu", dtype=getattr(torch, name), enabled=mixed):
        loss = NegativesClipLoss(terms=terms, backend=backend)(*sides, scale, torch.zeros_like(scale), samples=samples)
    amplified = condition.amplified if mixed else 1.0
    # Some weightings hold a scale of their own, and a batch of one has no gradient.
    gradients = torch.autograd.grad(loss * amplified, [*sides, scale], materialize_grads=True)
    return [loss.detach().double(), *(part.double() / amplified for part in gradients)]


def fault(found: list[Tensor], exact: list[Tensor], condition: Condition, precision: str) -> str | None:
    """Return what is wrong with a loss and its gradients, or None."""
    if not all(bool(part.isfinite().all()) for part in (*exact, *found)):
        return "not finite"
    if float(exact[0]) == 0 and len(condition.features[0]) > 1:  # one sample has no incorrect pairs
        return "a loss of exactly 0"
    step = ROUNDINGS * torch.finfo(getattr(torch, precision.split()[-1])).eps * max(1.0, condition.scale)
    for name, part, right in zip(("loss", "image gradient", "text gradient"), found, exact, strict=False):
        if float((part - right).norm()) > step * max(1.0, float(right.norm())):
            return f"{name} of norm {float(part.norm()):.5g} instead of {float(right.norm()):.5g}"
    return None


def faults(name: str, make: Callable[[], Any], condition: Condition, precisions: tuple[str, ...]) -> Iterator[str | None]:
    """Yield what is wrong on each backend and in each precision; terms may have a state, so each step makes new ones."""
    for precision in precisions:
        exact = steps(make(), condition, "torch", precision, exact=True)
        for backend in ("torch", "chunked") if isinstance(make(), LossTerms) else ("torch",):
            wrong = fault(steps(make(), condition, backend, precision), exact, condition, precision)
            yield f"{name}, {backend}, {precision}: {wrong}" if wrong else None


def rows(*, small: bool) -> Iterator[Row]:
    """Yield a row for each condition."""
    torch.set_num_threads(1)
    names = [item.name for item in registry.default_registry().items("loss_weighting")]
    removals = {"all pairs of some rows": partial(removing, 8), "all pairs but those of one cluster": partial(removing, 7)}
    for condition in conditions():
        makers: dict[str, Callable[[], Any]] = {name: partial(loss_terms, name, condition.clusters) for name in names}
        results, refused = list[str | None](), 0
        for name, make in (makers | removals).items():
            with suppress(ClipNegativesError):
                results += list(faults(name, make, condition, PRECISIONS[:1] if small else PRECISIONS))
                continue
            refused += 1
        lost, tried = [wrong for wrong in results if wrong], len(results) + refused
        print(f"{condition.what}: {tried} tried, {refused} refused", *lost, sep="\n    ", flush=True)
        promise = "finite and as in float64" + (f"; {refused} refused with an error message" if refused else "")
        yield counts("loss and gradients", condition.what, tried, len(lost), promise)


if __name__ == "__main__":
    run_campaign("numerics", rows)
