"""The kernels compile for two generations of GPUs, onto tensor cores and without spilling registers. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="no triton on this platform")

ROOT = Path(__file__).resolve().parents[3]
REGISTERS = {
    (80, ""): 208,
    (80, "tables"): 208,
    (90, ""): 128,
    (90, "tables"): 128,
    (90, "tables,direct"): 128,
    (90, "tables,factors"): 128,
    (90, "tables,limits,count"): 128,
    (90, "tables,hardness"): 216,
    (90, "tables,signs"): 128,
    (90, "groups"): 128,
    (90, "targets"): 128,
}
"""Bounds of registers a thread for bfloat16, for triton 3.6, 3.8 and 3.9.

Up to 128, two blocks of 256 threads fit on a multiprocessor, up to 255 one.
"""


def run_without_interpreter(module: str, cache: Path) -> list[str]:
    """Return the lines that a program prints, which compiles kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", f"tests.losses.kernels.{module}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return [json.loads(line) for line in run_without_interpreter("machine_code", tmp_path_factory.mktemp("triton"))]


def test_kernels_over_anchors_compile(tmp_path):
    from clip_negatives.losses.kernels import anchor_kernels, totals, wide_tables

    names = {name for module in (anchor_kernels, totals, wide_tables) for name in vars(module) if name.endswith("_kernel")}
    assert set(run_without_interpreter("anchor_code", tmp_path)) == names


def test_every_kernel_is_compiled_for_every_generation_and_type(compiled):
    assert {(each["kernel"], each["capability"]) for each in compiled} == {
        (kernel, capability) for kernel in ("sums_kernel", "slopes_kernel") for capability in (80, 90)
    }
    assert {each["dtype"] for each in compiled} == {"bfloat16", "float16", "float32"}
    assert any(each["logs"] for each in compiled)


def test_nothing_spills(compiled):
    assert [each for each in compiled if each["spilled_bytes"]] == []


def test_registers_are_within_bounds(compiled):
    checked = set()
    for each in compiled:
        case = each["capability"], each["options"]
        if each["dtype"] == "bfloat16" and case in REGISTERS:
            assert each["registers"] <= REGISTERS[case], each
            checked.add(case)
    assert checked == set(REGISTERS)


def test_products_run_on_tensor_cores(compiled):
    for each in compiled:
        assert each["tensor_core"]["HGMMA" if each["capability"] == 90 else "HMMA"] > 0, each


def test_weights_cost_few_instructions(compiled):
    count = {
        (each["kernel"], each["options"]): each["instructions"]
        for each in compiled
        if each["capability"] == 90 and each["dtype"] == "bfloat16"
    }
    for kernel in ("sums_kernel", "slopes_kernel"):
        assert count[kernel, "tables"] <= 1.25 * count[kernel, ""]
