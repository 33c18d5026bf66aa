"""Compile the kernels over anchors for a GPU that need not be here, and print the name of each: a program of its own.

Triton decides when it is imported whether it compiles kernels or interprets them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clip_negatives.losses.kernels.anchor_kernels import gradients_kernel, levels_kernel, losses_kernel
from clip_negatives.losses.kernels.totals import totals_kernel
from clip_negatives.losses.kernels.wide_tables import wide_table_kernel
from tests.losses.kernels.machine_code import signature_of

F32, I64, BF16, F16 = (torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.int64, torch.bfloat16, torch.float16))
TOTALS = ("IMPORTANCE", "GROUPS", "COUNT", "TARGETS", "ADD")
LOSSES = {"BLOCK": 32, "BK": 64}


def calls() -> Iterator[tuple[Any, list[Any], dict[str, Any]]]:
    """Yield each kernel with arguments and constants: all options on, and all off."""
    for on, top in ((True, F32), (False, None)):
        options = dict.fromkeys(TOTALS, on) | {"BLOCK": 128, "TILES": 16}
        yield wide_table_kernel, [F32, I64, top, F16 if on else F32, 256, 256, 64, 1], {"BLOCK": 1024}
        yield totals_kernel, [F32, F32, top, top, F32, 256, 256, 4, 512, 2048, 4, 1, 16], options
        features = BF16 if on else F32
        treated = {"COLUMNS": on, "NORMALIZED": on, "DECOUPLED": not on} | LOSSES
        yield losses_kernel, [features, features, F32, top, F32, F32, F32, 256, 512, 0, 512, 0.0], treated
        levels = [F32, F32, F32, 0, F32, top, top, F32, F32, F32, 512, 0.5]
        yield levels_kernel, levels, {"UNIFORM": on, "IMPORTANCE": on, "BLOCK": 32}
        gradients = [F32, features, features, F32, F32, F32, 0, F32, features, top, 256, 512, 256, 0, 0]
        yield gradients_kernel, gradients, {"COLUMNS": on, "UNIFORM": on} | LOSSES


if __name__ == "__main__":
    for kernel, values, constants in calls():
        source = ASTSource(kernel, *signature_of(kernel.arg_names, values, constants))
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
        print(kernel.__name__, flush=True)
