"""The examples of docstrings do what they show, in the package that is installed, which need not be that of the checkout."""

from __future__ import annotations

import doctest
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ["clip_negatives", "clip_negatives_plugins"]


def modules_with_examples() -> list[str]:
    """Return the modules whose source shows an example, found without importing them."""
    found = []
    for package in PACKAGES:
        folder = Path(find_spec(package).origin).parent
        for file in sorted(folder.rglob("*.py")):
            if ">>> " in file.read_text():
                parts = file.relative_to(folder.parent).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0
