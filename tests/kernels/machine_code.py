"""Compile the kernels for GPUs that need not be here, and print what the machine code uses: one line of JSON for each.

A program of its own, as triton decides when it is imported whether it compiles kernels or interprets them.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import fused, tiles
from clip_negatives.kernels.pairs import Pairs, Side

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64"}


def problem(dtype: torch.dtype, weighted: bool) -> fused._Problem:
    """Return what the launcher would hand to the kernels, of sizes that are multiples of 16."""
    x, labels, table = torch.zeros(256, 128, dtype=dtype), torch.zeros(256, dtype=torch.int64), torch.zeros(64, 64)
    terms = LossTerms(labels, table, labels, table) if weighted else None
    side = Side.of(terms, None)
    tables = (table, table) if weighted else (None, None)
    return fused._Problem(x, x, torch.tensor(1.0), None, Pairs(side, side, *tables))


def compiled(name: str, capability: int, dtype: torch.dtype, weighted: bool) -> dict[str, object]:
    """Return registers, stack (spills) and counts of tensor-core instructions of one kernel."""
    kernel, given = getattr(tiles, name), problem(dtype, weighted)
    sums = torch.zeros(1)
    out = torch.zeros(1, dtype=dtype)
    more = [sums] * 3 if name == "sums_kernel" else [sums, sums, sums, sums, out, 256]
    values = [*given.arguments(), *more, *given.sizes(256, 256)]
    flags = given.flags() | ({"COUNT": False} if name == "sums_kernel" else {})
    options = {option: flags.pop(option) for option in ("num_warps", "num_stages")}
    signature, constants, attributes = {}, {}, {}
    for place, (argument, value) in enumerate(zip(kernel.arg_names, values, strict=False)):
        signature[argument] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if value is None:
            signature[argument], constants[(place,)] = "constexpr", None
        elif isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    for argument, value in flags.items():
        signature[argument], constants[(kernel.arg_names.index(argument),)] = "constexpr", value
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage, code = (_tool("cuobjdump", flag, file.name) for flag in ("-res-usage", "-sass"))
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return {
        "kernel": name,
        "capability": capability,
        "dtype": str(dtype).removeprefix("torch."),
        "weighted": weighted,
        "registers": registers,
        "spilled_bytes": stack,
        "instructions": code.count(";"),
        "tensor_core": {code_name: len(re.findall(rf"\b{code_name}\b", code)) for code_name in ("HMMA", "HGMMA")},
    }


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for capability in (80, 90):
        for name in ("sums_kernel", "slopes_kernel"):
            for weighted in (False, True):
                print(json.dumps(compiled(name, capability, torch.bfloat16, weighted)), flush=True)
        print(json.dumps(compiled("slopes_kernel", capability, torch.float32, True)), flush=True)
