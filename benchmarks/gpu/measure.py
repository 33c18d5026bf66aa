"""Process that measures the cases; `python benchmarks/gpu` starts it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conftest import devices, machine
from run import machine as folder_name

from gpu.cases import Case, run_cases
from gpu.loss_cases import NAMES, Shape, loss_cases, profile_cases
from gpu.rows import Rows
from gpu.step_cases import kmeans_cases, training_cases
from gpu.tile_cases import OPTIONS, REHEARSED, tile_cases

K = 1000
MAIN = Shape(32768, 512, K)
SHAPES = (
    *(Shape(n, 512, K) for n in (65536, 8192, 1024, 16384, 4096, 2048)),
    *(Shape(32768, d, K) for d in (768, 1024)),
    *(Shape(32768, 512, 64), Shape(256, 512, K), Shape(131072, 512, K), Shape(32768, 512, 16384)),
)
COMPILED = (Shape(32768, 512, K), Shape(8192, 512, K), Shape(1024, 512, K))
TINY = (Shape(32, 32, 8), Shape(24, 16, 4))


def cases(parts: set[str], *, rehearse: bool) -> Iterator[Case]:
    """Yield the cases of some parts, the most important first; a rehearsal has tiny ones."""
    main, others = (TINY[0], TINY[1:]) if rehearse else (MAIN, SHAPES)
    if "loss" in parts:
        yield from loss_cases(main)
    if "profile" in parts:
        yield from profile_cases(main)
    if "tiles" in parts:
        yield from tile_cases(main, REHEARSED if rehearse else OPTIONS)
    if "loss" in parts:
        for shape in others:
            yield from loss_cases(shape, NAMES[:2] if rehearse else NAMES)
    if "step" in parts:
        yield from training_cases()
    if "compiled" in parts and not rehearse:  # last: compiling takes a minute, and needs a compiler on a CPU
        for shape in COMPILED:
            yield from loss_cases(shape, ("open_clip compiled",))
    if "kmeans" in parts:
        yield from kmeans_cases()


def main() -> int:
    """Measure the cases that have no row yet; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path)
    parser.add_argument("--parts", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--since", type=float, required=True)
    parser.add_argument("--done", type=Path, nargs="*", default=[])
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    rows = Rows(options.rows, options.done, since=options.since)
    rows.add("machine", folder=folder_name(), rehearsal=options.rehearse, information=_information())
    chosen = cases(set(options.parts.split(",")), rehearse=options.rehearse)
    return run_cases(chosen, rows, lambda: end - time.monotonic())


def _information() -> dict[str, Any]:
    """Return the hardware and the versions, as other result files have them, and the state of the GPU."""
    information = {**machine(), **devices(), "python_version": sys.version.split()[0]}
    if torch.cuda.is_available():
        command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"]
        information["clocks_and_power"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return information


if __name__ == "__main__":
    sys.exit(main())
