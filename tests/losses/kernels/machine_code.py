"""Compile the kernels for GPUs that need not be here, and print what the machine code uses: one line of JSON for each.

A program of its own, as triton decides when it is imported whether it compiles kernels or interprets them. ``all`` compiles
every option for both generations, which takes minutes; without it, those that are nearest to what registers hold.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clip_negatives.losses.kernels import problem, slopes, tile_sums, wide_tables
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.terms import LossTerms

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64"}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ONE = (
    "",
    "tables",
    "tables,direct",
    "tables,factors",
    "tables,limits,count",
    "tables,hardness",
    "tables,signs",
    "groups",
    "targets",
)
ALL = "tables,factors,groups,limits,hardness,count,bias"

EVERY: dict[torch.dtype, tuple[str, ...]] = {
    BF16: (*ONE, "tables,rectangle", "tables,groups", ALL, ALL + ",direct"),
    FP16: ("", "tables", "groups", "tables,groups", ALL, ALL + ",direct"),
    FP32: ("", "tables", "tables,direct", "groups", ALL, ALL + ",direct"),
}
"""What is asked of the kernels at once, by the type of the features."""

OPTIONS: dict[int, dict[torch.dtype, tuple[str, ...]]] = {
    80: {BF16: ("", "tables", ALL + ",direct"), FP32: (ALL + ",direct",)},
    90: {
        BF16: (*ONE, ALL + ",direct"),
        FP16: (ALL,),
        FP32: ("tables", ALL + ",direct"),
    },
}
"""The same by capability, as far as the tests go."""


class Nothing:
    """A kernel that is launched in vain."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given, **how: None


def given(dtype: torch.dtype, options: set[str], capability: int) -> problem.Problem:
    """Return what the launcher would hand to the kernels, of sizes that are multiples of 16."""
    n, k = 256, 512 if "direct" in options else 64
    labels, table = torch.zeros(n, dtype=torch.int64), torch.zeros(k, k) if "tables" in options else None
    beta = 0.5 if "hardness" in options else 0.0
    terms = LossTerms(
        image_labels=labels,
        image_table=table,
        text_labels=labels,
        text_table=table,
        factors=torch.zeros(n, 64) if "factors" in options else None,
        target_factors=torch.zeros(n, 64) if "targets" in options else None,
        target_mass=0.2,
        groups=labels if "groups" in options else None,
        hardness=beta,
    )
    pairs = dataclasses.replace(
        Pairs.of(terms, terms, columns_too="rectangle" not in options),
        row_limits=torch.zeros(n) if "limits" in options else None,
        column_limits=torch.zeros(n) if "limits" in options else None,
        importance=beta > 0,
        count="count" in options,
        mixed_signs="signs" in options,
    )
    x, bias = torch.zeros(n, 128, dtype=dtype), torch.tensor(1.0) if "bias" in options else None
    wide_tables.wide_table_kernel = Nothing()
    problem.capability_of = lambda device: divmod(capability, 10)
    problem.WIDE_TABLE_BYTES, problem.WIDE_TABLE_SHARE = (0, 0) if "direct" in options else (2**20, 0)
    return problem.Problem(Inputs(x, x, torch.tensor(1.0), bias), pairs)


def compiled(name: str, capability: int, dtype: torch.dtype, options: str, *, logs: bool = False) -> dict[str, object]:
    """Return registers, stack (spills) and counts of tensor-core instructions of one kernel."""
    chosen, sums = set(options.split(",")), torch.zeros(1)
    what, every = given(dtype, chosen, capability), slice(0, 256)
    if name == "sums_kernel":
        kernel, more, flags = tile_sums.sums_kernel, [sums] * 3, {"COUNT": "count" in chosen, "LOGS": logs}
    else:
        kernel, flags = slopes.slopes_kernel, {"SIGNS": "signs" in chosen}
        more = [*[sums] * 4, torch.zeros(1, dtype=dtype), *[256] * 3]
    flags = what.flags() | flags
    compiler = {option: flags.pop(option) for option in ("num_warps", "num_stages", "maxnreg") if option in flags}
    values = [*what.arguments(every, every), *more, *what.sizes(every, every)]
    source = ASTSource(kernel, *signature_of(kernel.arg_names, values, flags))
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=compiler)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage, code = (_tool("cuobjdump", flag, file.name) for flag in ("-res-usage", "-sass"))
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return {
        "kernel": name,
        "capability": capability,
        "dtype": str(dtype).removeprefix("torch."),
        "options": options,
        "logs": logs,
        "threads": 32 * compiler["num_warps"],
        "registers": registers,
        "spilled_bytes": stack,
        "shared": binary.metadata.shared,
        "instructions": code.count(";"),
        "tensor_core": {code_name: len(re.findall(rf"\b{code_name}\b", code)) for code_name in ("HMMA", "HGMMA")},
    }


def signature_of(names: list[str], values: list[Any], flags: dict[str, Any]) -> tuple[dict, dict, dict]:
    """Return the types of the arguments, which are constants, and which are multiples of 16, as triton finds them at a call."""
    signature, constants, attributes = {}, {}, {}
    for place, (argument, value) in enumerate(zip(names, values, strict=False)):
        if value is None or (type(value) is int and value == 1):
            signature[argument], constants[(place,)] = "constexpr", value
        elif isinstance(value, float):
            signature[argument] = "fp32"
        else:
            signature[argument] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            if isinstance(value, torch.Tensor) or value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    for argument, value in flags.items():
        signature[argument], constants[(names.index(argument),)] = "constexpr", value
    return signature, constants, attributes


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def kernels(*, every: bool) -> Iterator[dict[str, object]]:
    """Yield the kernels for two generations."""
    for capability, chosen in OPTIONS.items():
        for dtype, sets in (EVERY if every else chosen).items():
            for options in sets:
                for name in ("sums_kernel", "slopes_kernel"):
                    yield compiled(name, capability, dtype, options)
        yield compiled("sums_kernel", capability, BF16, ALL + ",direct", logs=True)


if __name__ == "__main__":
    for each in kernels(every="all" in sys.argv):
        print(json.dumps(each), flush=True)
