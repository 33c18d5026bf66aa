"""Packages for a machine without a network: wheels are downloaded on one machine and unpacked on the other."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GLIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
STAMP = "unpacked.txt"  # names and sizes of the wheels in a folder of unpacked wheels


def pack(folder: Path, python: str) -> list[Path]:
    """Download the wheels of wheels.txt, build the wheel of this package, and return all of them."""
    if find_spec("pip") is None:
        sys.exit(f"{sys.executable} has no pip. Run pack with a Python that has it.")
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):
        wheel.unlink()
    platforms = [word for glibc in GLIBC for word in ("--platform", f"{glibc}_x86_64")]
    target = ["--python-version", python, "--implementation", "cp", *platforms]
    _pip("download", "--only-binary=:all:", *target, "--dest", folder, "--requirement", HERE / "wheels.txt")
    _pip("wheel", "--wheel-dir", folder, ROOT)
    return sorted(folder.glob("*.whl"))


def unpack(folder: Path, site: Path) -> None:
    """Unpack the wheels of `folder` into `site`, unless the same wheels are there; pip is not needed."""
    wheels = sorted(folder.glob("*.whl"))
    stamp = "".join(f"{wheel.name} {wheel.stat().st_size}\n" for wheel in wheels)
    if (site / STAMP).exists():
        if (site / STAMP).read_text() == stamp:
            return
        shutil.rmtree(site)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    if wheels:
        (site / STAMP).write_text(stamp)


def _pip(command: str, *arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "--quiet", "--no-deps", *arguments], check=True)
