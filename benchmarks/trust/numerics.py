"""Loss and gradients where numbers are extreme: python benchmarks/trust/numerics.py [--small].

Every loss weighting that is installed meets every condition below, on each backend that takes it and in each precision, and
is compared with the torch backend in float64. It survives where loss and gradients are finite and near the exact ones, and
the exact loss is not 0 (but for a batch of one, which has no incorrect pair): a loss that is silently 0 is found. Weightings
are built as training builds them; one that is then refused with a sentence (`clip_negatives.errors`) survives as well.

The result goes to ``benchmarks/results/<machine>/trust-numerics.json``, of ``--small`` to ``.benchmarks/<machine>/``.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from record import Row, write
from torch import Tensor

from clip_negatives import registry
from clip_negatives.errors import ClipNegativesError
from clip_negatives.integrations.weighting import loss_terms
from clip_negatives.interfaces import Clustering, Clusters, LossTerms
from clip_negatives.loss import NegativesClipLoss
from clip_negatives.sampling import epoch_generator
from clip_negatives.testing.blobs import make_blobs

N, B, DIM = 240, 32, 16
"""Samples, batch size and size of the embeddings."""

PRECISIONS = ("float32", "bfloat16", "float16", "autocast bfloat16", "autocast float16")
"""Types of the features, and autocast of float32 ones."""

ROUNDINGS = 4.0
"""Steps of the precision, of the largest logit, that loss and gradients may be off, relative to their size or to 1."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Say what a loss meets.

    Attributes:
        what: in a few words.
        features: image and text features, float32, shape (B, D).
        scale: factor of the cosines.
        clusters: of the N samples.
        amplified: what the loss is multiplied with under autocast before half precision sees the gradients.
        no_pairs: there is no incorrect pair, so that the loss is 0.
    """

    what: str
    features: tuple[Tensor, Tensor]
    scale: float = 14.3
    clusters: Clusters = dataclasses.field(default_factory=lambda: make_blobs(N))
    amplified: float = 1.0
    no_pairs: bool = False


def conditions() -> Iterator[Condition]:
    """Yield what every loss meets."""
    generator = epoch_generator(0, 1)
    x = torch.randn(B, DIM, generator=generator)
    x, y = F.normalize(x, dim=1), F.normalize(x + torch.randn(B, DIM, generator=generator), dim=1)
    same = F.normalize(torch.ones(B, DIM), dim=1)
    yield Condition("an ordinary batch", (x, y))
    yield Condition("a batch of one", (x[:1], y[:1]), no_pairs=True)
    yield Condition("a batch of two", (x[:2], y[:2]))
    yield Condition("logit_scale at its clamp of 100", (x, y), scale=100.0)
    yield Condition("logit_scale at 0.01", (x, y), scale=0.01)
    yield Condition(
        "pairs that agree, at scale 100, but for one", (torch.cat([x[:-1], -y[-1:]]), torch.cat([x[:-1], y[-1:]])), 100
    )
    yield Condition("identical images", (same, y))
    yield Condition("identical texts", (x, same))
    yield Condition("identical images and texts", (same, same.clone()))
    yield Condition("features of zeros in some rows", (x.index_fill(0, torch.arange(4), 0.0), y))
    yield Condition("gradients multiplied by 65,536, as a GradScaler does under autocast", (x, y), amplified=65536.0)
    for what, clusters in strange_clusters():
        yield Condition(what, (x, y), clusters=clusters)


def strange_clusters() -> Iterator[tuple[str, Clusters]]:
    """Yield clusters of data that have no structure, or nothing but one."""
    blobs = make_blobs(N)
    one = Clustering(torch.zeros(N, dtype=torch.int64), F.normalize(torch.ones(1, DIM), dim=1))
    alike = torch.ones(1, 1)
    yield "one image cluster", dataclasses.replace(blobs, image=one, image_similarity=alike)
    yield "one text cluster", dataclasses.replace(blobs, text=one, text_similarity=alike)
    yield "one cluster of each", dataclasses.replace(blobs, image=one, text=one, image_similarity=alike, text_similarity=alike)
    own = Clustering(torch.arange(N), F.normalize(torch.randn(N, DIM, generator=epoch_generator(1, 1)), dim=1))
    apart = own.centroids @ own.centroids.T
    yield (
        "a cluster for each sample",
        dataclasses.replace(blobs, image=own, text=own, image_similarity=apart, text_similarity=apart),
    )
    same = F.normalize(torch.ones(N, DIM), dim=1)
    yield (
        "identical frozen features",
        dataclasses.replace(
            blobs, image=one, text=one, image_similarity=alike, text_similarity=alike, image_features=same, text_features=same
        ),
    )
    nothing, everything = torch.arange(N), torch.zeros(N, dtype=torch.int64)
    yield "all texts and groups equal", dataclasses.replace(blobs, texts=everything, groups=everything)
    yield "no two texts or groups equal", dataclasses.replace(blobs, texts=nothing, groups=nothing)


def weightings() -> list[str]:
    """Return the weightings that are installed."""
    return [item.name for item in registry.default_registry().items("loss_weighting")]


def removing() -> dict[str, Callable[[], LossTerms]]:
    """Return terms that remove all incorrect pairs of some rows, and of one row but one pair."""
    labels = torch.arange(N) % 8

    def some(columns: slice) -> LossTerms:
        table = torch.zeros(8, 8)
        table[:3, columns] = -torch.inf
        return LossTerms(image_labels=labels, image_table=table, normalize=True)

    parts = {"all pairs of some rows": slice(0, 8), "all pairs but those of one cluster": slice(0, 7)}
    return {name: functools.partial(some, columns) for name, columns in parts.items()}


@dataclass(slots=True)
class Outcome:
    """Count how a condition ended."""

    tried: int = 0
    refused: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)


def steps(terms: Any, condition: Condition, backend: str, precision: str, *, exact: bool = False) -> list[Tensor]:
    """Return the loss and the gradients to both features and to the scale, float64; computed in it too where they are exact.

    Features are rounded first, so that both are of the same numbers.
    """
    autocast, _, name = precision.rpartition(" ")
    dtype = getattr(torch, name)
    sides = [side if autocast else side.to(dtype) for side in condition.features]
    if exact:
        autocast, dtype, sides = "", torch.float64, [side.double() for side in sides]
    sides = [side.clone().requires_grad_() for side in sides]
    scale = torch.tensor(condition.scale, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
    where = torch.arange(len(sides[0])) * 7 % N
    with torch.autocast("cpu", dtype=dtype) if autocast else nullcontext():
        loss = NegativesClipLoss(terms=terms, backend=backend)(*sides, scale, torch.zeros_like(scale), index=where)
    # Some hold a scale of their own, and a batch of one has no gradient.
    amplified = condition.amplified if autocast else 1.0
    found = torch.autograd.grad(loss * amplified, [*sides, scale], materialize_grads=True)
    return [loss.detach().double(), *(part.double() / amplified for part in found)]


def fault(found: list[Tensor], exact: list[Tensor], condition: Condition, precision: str) -> str | None:
    """Say what is wrong with a loss and its gradients, or None."""
    if not all(bool(part.isfinite().all()) for part in (*exact, *found)):
        return "not finite"
    loss, truth = float(found[0]), float(exact[0])
    if truth == 0 and not condition.no_pairs:
        return "a loss of exactly 0"
    step = ROUNDINGS * torch.finfo(getattr(torch, precision.split()[-1])).eps * max(1.0, condition.scale)
    if abs(loss - truth) > step * max(1.0, abs(truth)):
        return f"a loss of {loss:.5g} for {truth:.5g}"
    for part, right in zip(found[1:3], exact[1:3], strict=True):
        if float((part - right).norm()) > step * max(1.0, float(right.norm())):
            return f"a gradient that is off by {float((part - right).norm()):.2g} of {float(right.norm()):.2g}"
    return None


def tried(make: Callable[[], Any], condition: Condition, precisions: tuple[str, ...], outcome: Outcome, name: str) -> None:
    """Try one weighting under one condition, on each backend and in each precision; it is made anew each time."""
    try:
        backends = ("torch", "chunked") if isinstance(make(), LossTerms) else ("torch",)
    except ClipNegativesError:
        outcome.tried += 1
        outcome.refused += 1
        return
    for precision in precisions:
        exact = steps(make(), condition, "torch", precision, exact=True)
        for backend in backends:
            outcome.tried += 1
            if (told := fault(steps(make(), condition, backend, precision), exact, condition, precision)) is not None:
                outcome.faults.append(f"{name}, {backend}, {precision}: {told}")


def main() -> None:
    """Try everything, and write the result file."""
    small = "--small" in sys.argv
    precisions = PRECISIONS[:1] if small else PRECISIONS
    torch.set_num_threads(1)
    start, rows = time.perf_counter(), []
    for condition in conditions():
        outcome = Outcome()
        for name in weightings():
            tried(functools.partial(loss_terms, name, condition.clusters), condition, precisions, outcome, name)
        if not condition.no_pairs:
            for name, make in removing().items():
                tried(make, condition, precisions, outcome, name)
        print(f"{condition.what}: {outcome.tried} tried, {outcome.refused} refused, {len(outcome.faults)} lost", flush=True)
        for one in outcome.faults:
            print(f"    {one}", flush=True)
        lost = len(outcome.faults)
        said = "finite and as in float64" + (f"; {outcome.refused} refused with a sentence" if outcome.refused else "")
        rows.append(Row("loss and gradients", condition.what, outcome.tried, outcome.tried - lost, lost, said))
    command = "python benchmarks/trust/numerics.py"
    print(write("numerics", rows, command=command, seconds=time.perf_counter() - start, small=small))


if __name__ == "__main__":
    main()
