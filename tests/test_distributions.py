"""What is published: the same sources give the same bytes, wherever and whenever they are built, and all that is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _built(folder: Path, *arguments: str, time: int) -> dict[str, Path]:
    """Copy the sources into a folder, as if written at that time, build there and return what was built by its suffix."""
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for name in (*PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"], "pyproject.toml", ".gitignore"):
        source = ROOT / name.removeprefix("/")
        if source.is_dir():
            shutil.copytree(source, sources / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():  # an sdist has no .gitignore of its own
            shutil.copy(source, sources / source.name)
    for path in sources.rglob("*"):
        os.utime(path, (time, time))
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, "--outdir", str(folder / "built"), str(sources)]
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.suffix: path for path in (folder / "built").iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return two sdists and wheels: the first wheel of its sdist, the second of the sources, elsewhere and 20 years later."""
    folder = tmp_path_factory.mktemp("built")
    return (
        _built(folder / "here", time=1_100_000_000),
        _built(folder / "some" / "where else", "--sdist", "--wheel", time=1_750_000_000),
    )


@pytest.mark.parametrize("suffix", [".gz", ".whl"])
def test_same_sources_same_bytes(built: tuple[dict[str, Path], dict[str, Path]], suffix: str) -> None:
    one, other = (files[suffix] for files in built)
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


def test_sdist_holds_what_building_testing_and_documenting_need(built: tuple[dict[str, Path], dict[str, Path]]) -> None:
    with tarfile.open(built[0][".gz"]) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    needed = {"pyproject.toml", "tox.ini", "mkdocs.yml", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", ".ci/run"}
    assert needed - held == set()
    folders = ("src", "plugins", "tests", "docs", "benchmarks")
    there = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*") if _published(path)}
    assert there - held == set()


def _published(path: Path) -> bool:
    return (
        path.is_file()
        and path.suffix in {".py", ".pyi", ".md", ".toml", ".json", ".svg", ".parquet", ".html"}
        and ("__pycache__" not in path.parts and not any(part.startswith(".") for part in path.relative_to(ROOT).parts))
    )


def test_wheel_holds_the_data_once_and_nothing_of_the_tests(built: tuple[dict[str, Path], dict[str, Path]]) -> None:
    with zipfile.ZipFile(built[0][".whl"]) as wheel:
        names = wheel.namelist()
    assert [name for name in names if name.endswith(".parquet")] == ["clip_negatives/catalogue/data/catalogue.parquet"]
    assert [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))] == []


def test_building_needs_the_backend_alone() -> None:
    assert [name.partition(">")[0] for name in PROJECT["build-system"]["requires"]] == ["hatchling"]
