"""Tests and benchmarks of the fused kernels on a GPU machine, with or without a network: python benchmarks/gpu --help."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpu.exit_codes import CASES_LEFT, FAILED, FINISHED
from gpu.keep import keep
from gpu.processes import run_logged, run_measurements
from gpu.rows import Rows
from gpu.wheels import pack, unpack

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
WORK = ROOT / ".benchmarks"
TESTS = ("tests/losses/kernels", "tests/plugins/test_lloyd.py")
REHEARSED_TESTS = ("tests/losses/kernels/test_fused_loss.py::test_a_step_launches_fewer_kernels_than_open_clips",)
PARTS = {"bench": "loss,profile,tiles,step,compiled", "kmeans": "kmeans"}
COMMANDS = {
    "pack": "download wheels and build ours, on a machine with a network",
    "check": "show versions, GPUs, and what is missing",
    "tests": "run every test of the kernels",
    "bench": "measure losses, tile options and a training step, the most important first",
    "kmeans": "measure k-means",
    "all": "check, tests, bench and kmeans",
    "keep": "write result files from the rows of earlier runs",
}


def main() -> int:
    """Run one command; return its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the processes that were started
    options = _parser().parse_args()
    if options.command == "pack":
        wheels = pack(options.wheels, options.python)
        print(*wheels, f"{sum(wheel.stat().st_size for wheel in wheels) / 2**20:.0f} MiB", sep="\n")
        return FINISHED
    if options.command == "keep":
        print(*keep(options.done or [options.out / "rows.jsonl"]), sep="\n")
        return FINISHED
    options.out.mkdir(parents=True, exist_ok=True)
    unpack(options.wheels, options.site)
    options.since, options.end = time.time(), time.monotonic() + options.seconds
    commands = ("check", "tests", "bench", "kmeans") if options.command == "all" else (options.command,)
    codes = [_run(command, options) for command in commands]
    return FAILED if FAILED in codes else max(codes)


def _run(command: str, options: argparse.Namespace) -> int:
    """Run one command in a process of its own."""
    rows, log = options.out / "rows.jsonl", options.out / "log.txt"
    environment, left = _environment(options), options.end - time.monotonic()
    if command == "check":
        code = run_logged([sys.executable, "-m", "gpu.check"], environment, log, left, ROOT)
        return CASES_LEFT if code is None else code
    done = ["--done", *map(str, options.done)]
    if command == "tests":
        seconds = left * 0.4 if options.command == "all" else left
        code = run_logged([*_pytest(options), "--rows", str(rows), *done], environment, log, seconds, ROOT)
        return CASES_LEFT if code is None else FINISHED if code in (0, 5) else FAILED  # 5: every test has its row
    process = [sys.executable, "-m", "gpu.measure", str(rows), "--parts", PARTS[command], "--since", str(options.since)]
    process += [*done, *(["--rehearse"] if options.rehearse else [])]
    return run_measurements(process, environment, log, left, ROOT, Rows(rows, options.done))


def _pytest(options: argparse.Namespace) -> list[str]:
    """Return the command of the tests; compiling takes minutes on one core, so processes share it."""
    sys.path.insert(1, str(options.site))
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-p", "gpu.pytest_rows", "--durations=8"]
    if find_spec("xdist") and options.jobs > 1:
        command += ["--numprocesses", str(options.jobs), "--dist", "worksteal"]
    if find_spec("pytest_timeout"):
        command += ["--timeout", "240"]
    return [*command, *(REHEARSED_TESTS if options.rehearse else TESTS)]


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment of a process: this checkout before the wheels, whose package of ours only lists the plugins."""
    folders = [ROOT / "src", ROOT / "plugins", BENCHMARKS, options.site]
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    environment["BENCHMARK_FULL"] = "0" if options.rehearse else "1"
    environment["CLIP_NEGATIVES_CACHE"] = str(WORK / "cache")
    environment["TRITON_CACHE_DIR"] = os.environ.get("TRITON_CACHE_DIR", str(WORK / "triton"))
    if options.rehearse:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **environment}


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:8}{text}" for name, text in COMMANDS.items())
    codes = f"Exit codes: {FINISHED} finished, {FAILED} a case or test failed, {CASES_LEFT} time was up and cases are left."
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu",
        description=f"{__doc__}\n\n{listed}\n\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    out = Path(os.environ.get("OUT", WORK / "gpu"))
    parser.add_argument(
        "--out", type=Path, default=out, help="folder of rows.jsonl and log.txt (default: $OUT, or .benchmarks/gpu)"
    )
    parser.add_argument(
        "--done", type=Path, nargs="*", default=[], help="files of rows of earlier runs: their cases are left out"
    )
    parser.add_argument("--seconds", type=float, default=540, help="time limit (default: 540)")
    parser.add_argument("--wheels", type=Path, default=WORK / "wheels", help="folder of the wheels")
    parser.add_argument("--site", type=Path, default=WORK / "site", help="folder to unpack the wheels in")
    parser.add_argument("--python", default="3.12", help="pack: Python of the GPU machine (default: 3.12)")
    parser.add_argument("--jobs", type=int, default=min(12, os.cpu_count() or 1), help="tests: processes")
    parser.add_argument("--rehearse", action="store_true", help="run tiny cases on the CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
