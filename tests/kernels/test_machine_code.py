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

# Up to 128 registers two blocks of 256 threads fit on a multiprocessor.
REGISTERS = {(80, False): 192, (80, True): 192, (90, False): 128, (90, True): 168}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    program = Path(__file__).with_name("machine_code.py")
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_is_compiled_for_every_generation(compiled):
    assert {(each["kernel"], each["capability"]) for each in compiled} == {
        (kernel, capability) for kernel in ("sums_kernel", "slopes_kernel") for capability in (80, 90)
    }


def test_nothing_spills(compiled):
    assert [each for each in compiled if each["spilled_bytes"]] == []


def test_registers_are_within_bounds(compiled):
    for each in compiled:
        if each["dtype"] == "bfloat16":
            assert each["registers"] <= REGISTERS[each["capability"], each["weighted"]], each


def test_products_run_on_tensor_cores(compiled):
    for each in compiled:
        assert each["tensor_core"]["HGMMA" if each["capability"] == 90 else "HMMA"] > 0, each


def test_weights_cost_few_instructions(compiled):
    count = {
        (each["kernel"], each["weighted"]): each["instructions"]
        for each in compiled
        if each["capability"] == 90 and each["dtype"] == "bfloat16"
    }
    for kernel in ("sums_kernel", "slopes_kernel"):
        assert count[kernel, True] <= 1.25 * count[kernel, False]
