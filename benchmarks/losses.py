"""The losses to compare: ours, open_clip's, and fused ones from PyPI if they are installed and can run here."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from open_clip import ClipLoss
from torch import Tensor

from clip_negatives.interfaces import LossTerms
from clip_negatives.losses.backends import BACKENDS, triton_obstacle
from clip_negatives.losses.functional import weighted_info_nce

SCALE = 14.3
RANK = 128  # length of the factors of targets by similarity
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32

OURS = ("torch", "chunked", "triton", "open_clip")
"""Prefixes of the names of our losses and the baseline, which must run; a failure of the others is a result."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def weights(kind: str, n: int, k: int) -> LossTerms | None:
    """Return no weights ("none"), two tables of k clusters ("weighted"), or the same with mean 1 ("normalized").

    "scheduled" weights change during the training. "sorted" orders the samples by cluster, to show what sorting could gain.
    "targets" has targets by similarity.
    """
    if kind == "none":
        return None
    generator = torch.Generator(DEVICE).manual_seed(1)  # large tables take seconds to draw on a CPU
    if kind == "targets":
        factors = F.normalize(torch.randn(n, RANK, generator=generator, device=DEVICE), dim=1)
        return LossTerms(target_factors=10**0.5 * factors, target_mass=0.2).to(DEVICE)  # inner products up to 10, as in blend
    labels = torch.randint(k, (2, n), generator=generator, device=DEVICE)
    tables = -torch.rand(2, k, k, generator=generator, device=DEVICE)
    if kind == "sorted":
        labels = labels[:, (labels[0] * k + labels[1]).argsort()]
    parts = {"image_labels": labels[0], "image_table": tables[0], "text_labels": labels[1], "text_table": tables[1]}
    schedule = ((0.0, 0.0), (1.0, 1.0)) if kind == "scheduled" else ()
    return LossTerms(**parts, normalize=kind == "normalized", schedule=schedule).to(DEVICE)


def names() -> list[str]:
    """Return the name of every loss that can run here, open_clip's first."""
    backends = ["torch", "chunked", *([] if triton_obstacle(DEVICE, DTYPE) or DEVICE.type == "cpu" else ["triton"])]
    kinds = "none", "weighted", "scheduled", "normalized", "targets"
    own = [f"{backend} {kind}" for backend in backends for kind in kinds]
    own += ["triton sorted"] if "triton" in backends else []
    return ["open_clip", *own, *(["open_clip compiled", *_peers()] if DEVICE.type == "cuda" else [])]


def loss_of(name: str, n: int, k: int) -> Loss:
    """Return a loss of n pairs and k clusters by its name.

    Raises:
        ModuleNotFoundError: the package of the loss is not installed.
    """
    if name == "open_clip":
        return ClipLoss()
    if name == "open_clip compiled":
        return torch.compile(ClipLoss(), dynamic=False)
    backend, _, kind = name.partition(" ")
    if backend in BACKENDS:
        return _ours(backend, weights(kind, n, k))
    peers = _peers()
    if name not in peers:
        raise ModuleNotFoundError(f"{name} is not installed")
    return peers[name]


def cannot(name: str, step: Callable[[], object]) -> str | None:
    """Return why a loss cannot take a step here, None if it can; ours and open_clip's may only lack memory."""
    try:
        step()
    except torch.OutOfMemoryError:
        return "out of memory"
    except Exception as error:
        if name.startswith(OURS):
            raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _ours(backend: str, terms: LossTerms | None) -> Loss:
    progress = torch.tensor(0.5, device=DEVICE)
    return lambda x, y, scale: weighted_info_nce(
        x, y, scale, terms=None if terms is None else terms.at(progress), backend=backend
    )


def _peers() -> dict[str, Loss]:
    """Return the fused losses of other packages; none takes weights, and memeff's scale has no gradient."""
    found: dict[str, Loss] = {}
    if find_spec("memeff"):
        from memeff import MemoryEfficientCLIPLoss

        memeff = MemoryEfficientCLIPLoss(temperature=1 / SCALE, normalized_inputs=True, stable=False)
        found["memeff"] = lambda x, y, scale: memeff(x, y)
    if find_spec("inf_cl"):
        from inf_cl import cal_flash_loss

        def inf_cl(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
            return (cal_flash_loss(x, y, scale=scale).mean() + cal_flash_loss(y, x, scale=scale).mean()) / 2

        found["inf-cl"] = inf_cl
    return found


def make_step(loss: Loss, n: int, d: int, *, passes: str = "both") -> Callable[[], None]:
    """Return a step of n pairs of d features: the loss ("forward"), its gradients to features and scale, or "both"."""
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(side, dim=1) for side in torch.randn(2, n, d, generator=generator))
    x, y = (side.to(DEVICE, DTYPE).requires_grad_() for side in (x, y))
    scale = torch.tensor(SCALE, device=DEVICE, requires_grad=True)
    kept = loss(x, y, scale) if passes == "backward" else None

    def step() -> None:
        value = loss(x, y, scale) if kept is None else kept
        if passes != "forward":
            torch.autograd.grad(value, (x, y, scale), allow_unused=True, retain_graph=kept is not None)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return step


def floor_seconds(n: int, d: int) -> float:
    """Return the shortest possible time of a forward and backward pass here, by its operations or by its bytes.

    Each tile of the logits is computed once forward (2 n^2 d) and once backward, where two more products use it, at the rate of
    a large product. Features are read in both passes and gradients are written, at the rate of a copy.
    """
    return max(8 * n * n * d / matmul_rate(), 6 * n * d * DTYPE.itemsize / copy_rate())


@functools.cache
def matmul_rate() -> float:
    """Return the operations a second of a product of two large square matrices, the best of several."""
    size = 8192 if DEVICE.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _best_seconds(lambda: torch.mm(a, b, out=out))


@functools.cache
def copy_rate() -> float:
    """Return the bytes a second that a copy reads and writes, the best of several."""
    source = torch.ones(2**28 if DEVICE.type == "cuda" else 2**26, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * len(source) / _best_seconds(lambda: target.copy_(source))


def _best_seconds(work: Callable[[], object], rounds: int = 12) -> float:
    import time

    best = math.inf
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
