"""What the fused kernels hold at the size of a large batch, by the sizes of what is alive: nothing is computed."""

from __future__ import annotations

import weakref
from importlib.util import find_spec

import pytest
import torch
from open_clip import ClipLoss
from torch.utils._python_dispatch import TorchDispatchMode

from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.sums import PairSums
from clip_negatives.terms import LossTerms

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="no triton on this platform")
D = 512


class Alive(TorchDispatchMode):
    """Add up the storages that operations make, as long as they live."""

    def __init__(self):
        super().__init__()
        self.bytes, self.peak, self._seen = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for each in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(each, torch.Tensor) and each.untyped_storage()._cdata not in self._seen:
                self._count(each.untyped_storage())
        return found

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self._seen.discard(key)
        self.bytes -= size


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def of_open_clip(n):
    x, y, scale = (tensor.requires_grad_() for tensor in (empty(n, D), empty(n, D), empty(dtype=torch.float32)))
    with Alive() as alive:
        torch.autograd.grad(ClipLoss()(x, y, scale), (x, y, scale))
    return alive.peak


def of_the_kernels(n, k, monkeypatch):
    from clip_negatives.losses.kernels import anchor_kernels, fused, problem, slopes, tile_sums, totals, wide_tables

    class Nothing:
        def __getitem__(self, grid):
            return lambda *given, **how: None

    for module in (tile_sums, totals, wide_tables, slopes, anchor_kernels):
        for kernel in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, kernel, Nothing())
    monkeypatch.setattr(problem, "interpreted", lambda: False)
    monkeypatch.setattr(fused, "_add_product", lambda *given, **how: None)
    x, y, labels, table = empty(n, D), empty(n, D), empty(n, dtype=torch.int64), empty(k, k, dtype=torch.float32)
    terms = LossTerms(image_labels=labels, image_table=table, text_labels=labels, text_table=table)
    scale, pairs = empty(dtype=torch.float32), Pairs.of(terms, terms)
    with Alive() as alive:
        inputs = Inputs(x, y, scale, None)
        sums = fused.forward(inputs, pairs)
        found = fused.backward(inputs, pairs, sums, PairSums(*map(torch.empty_like, sums)), (True, True))
        [gradient.to(x.dtype) for gradient in (found[0] * scale, found[1] * scale)]
    return alive.peak


@pytest.mark.parametrize(("n", "k", "share"), [(32768, 1000, 0.05), (32768, 16384, 0.05), (8192, 16384, 0.3)])
def test_is_a_small_share_of_open_clips(n, k, share, monkeypatch):
    assert of_the_kernels(n, k, monkeypatch) <= share * of_open_clip(n)
