"""What it means that a kernel is exact: no farther from float64 than torch is in the same precision, but for one rounding."""

from __future__ import annotations

import pytest
import torch

from clip_negatives.losses.backends import interpreted
from tests.info_nce import features, gradients, loss_of

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# The interpreter is silently wrong for products of bfloat16.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * CUDA

needs_triton = [
    pytest.mark.skipif(not (CUDA or interpreted()), reason="neither a GPU nor TRITON_INTERPRET=1"),
    # The interpreter, of an empty sum, and of positives, whose values a mask takes out.
    pytest.mark.filterwarnings("ignore:(divide by zero|overflow|invalid value) encountered in:RuntimeWarning"),
    pytest.mark.gpu,  # where there is one; without, the interpreter runs them
]

ROUNDINGS = {torch.float32: 64, torch.float16: 2, torch.bfloat16: 2}
"""Steps of the type of the features that a result may be farther off than torch's, by its largest entry and by its norm.

Half-precision gradients are rounded once by torch as well, and by us also as slopes. Sums of float32 may be of another order.
"""


def problem(n, d, dtype, *, seed=0, scale=10.0, on=DEVICE):
    """Return features, scale and bias that ask for gradients; float64 ones hold the very values of the others."""
    x, y = (side.detach().to(dtype if dtype != torch.float64 else torch.float32) for side in features(n, d, seed))
    numbers = torch.tensor(scale), torch.tensor(-1.5)
    return [tensor.to(on).requires_grad_() for tensor in (x, y, *numbers)]


def run(inputs, backend, **how):
    """Return the loss and its gradients."""
    loss = loss_of(*inputs, backend=backend, **how)
    return [loss.detach(), *gradients(loss, *inputs)]


def assert_no_less_exact_than_torch(inputs, **how):
    """Assert for the loss and every gradient that |kernel - float64| <= |torch - float64| + what rounding explains."""
    exact = run([tensor.detach().double().requires_grad_() for tensor in inputs], "chunked", **how)
    ours, theirs = run(inputs, "triton", **how), run(inputs, "torch", **how)
    step = ROUNDINGS[inputs[0].dtype] * torch.finfo(inputs[0].dtype).eps
    largest = max(float(gradient.abs().max()) for gradient in exact[1:])
    for name, one, other, truth in zip(["loss", "x", "y", "scale", "bias"], ours, theirs, exact, strict=True):
        assert one.dtype == other.dtype or name == "loss"
        for size_of in (lambda tensor: float(tensor.abs().max()), lambda tensor: float(tensor.norm())):
            size = size_of(truth) if name in ("loss", "x", "y") else largest  # those sum what cancels
            off, allowed = (size_of(found.double() - truth) for found in (one, other))
            assert off <= allowed + step * max(size, 1e-3), (name, off, allowed, size)


def treated(n, which):
    """Return one treatment of pairs, or all."""
    how = {
        "margin": 0.1,
        "hardness": 0.5,
        "positive_rate": torch.linspace(0, 0.2, n, device=DEVICE),
        "groups": (torch.arange(n) // 3).to(DEVICE),
    }
    return how if which == "all" else {which: how[which]} if which in how else {}
