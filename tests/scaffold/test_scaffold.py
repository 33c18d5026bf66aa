from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from clip_negatives.errors import InputError
from clip_negatives.host.registry import KINDS, Kind
from clip_negatives.scaffold import new_plugin
from clip_negatives.testing import Subject, outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_conforms(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its factory; that it installs, is found and trains is tested with the third party's plugin."""
    module = f"own_{kind}"
    folder = new_plugin(module.replace("_", "-"), kind, directory=tmp_path)
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == ["README.md", f"{module}/__init__.py", "pyproject.toml", f"tests/test_{module}.py"]
    monkeypatch.syspath_prepend(folder)
    hooks = vars(importlib.import_module(module))
    (factories,) = (hook() for name, hook in hooks.items() if name.startswith("clip_negatives_register_"))
    assert list(factories) == [module]
    assert [one for one in outcomes(Subject.of(kind, factories[module])) if one.needs_change] == []


@pytest.mark.parametrize("name", ["My-Sampler", "1st", "a b", "../out", "class", "", "a--b"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="such as my-sampler"):
        new_plugin(name, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already a negative sampler of clip-negatives"):
        new_plugin("in-batch", directory=tmp_path)
    with pytest.raises(InputError, match="'numpy' is already an installed module"):
        new_plugin("numpy", directory=tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="exists already"):
        new_plugin("mine", directory=tmp_path)
