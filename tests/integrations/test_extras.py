"""Trainers that are not installed."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from clip_negatives.errors import MissingPackageError


@pytest.mark.parametrize(
    ("module", "extra", "package"),
    [
        ("sentence_transformers", "sentence-transformers", "datasets"),
        ("sentence_transformers", "sentence-transformers", "sentence_transformers"),
        ("transformers", "transformers", "accelerate"),
        ("accelerate", "accelerate", "accelerate"),
        ("lightning", "lightning", "lightning"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, extra, package):
    full = f"clip_negatives.integrations.{module}"
    ours = [name for name in sys.modules if name.startswith(full)]
    theirs = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    for name in {package, *theirs}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'clip-negatives\[{extra}\]'"):
        importlib.import_module(full)


def test_no_trainer_is_imported_before_it_is_asked_for():
    code = (
        "import sys, clip_negatives.integrations.loop\n"
        "print([name for name in ('lightning', 'accelerate', 'datasets', 'sentence_transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
