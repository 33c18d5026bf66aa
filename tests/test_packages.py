"""What every package of the wheel has."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ["clip_negatives", "clip_negatives_plugins"]


@pytest.mark.parametrize("package", PACKAGES)
def test_it_says_that_it_is_typed(package: str) -> None:
    assert (Path(find_spec(package).origin).parent / "py.typed").is_file()
