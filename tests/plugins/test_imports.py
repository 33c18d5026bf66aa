"""The default plugins import the documented API only, as plugins of other distributions do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins" / "clip_negatives_plugins"


def documented() -> dict[str, set[str]]:
    """Return the members that the pages of docs/api list of each module; an empty set means all."""
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").iterdir())
    entries = re.findall(r"^::: ([\w.]+)$(?:\n    options: \{ members: \[(.*?)\])?", pages, re.MULTILINE)
    return {module: set(members.split(", ")) - {""} for module, members in entries}


@pytest.mark.parametrize("plugin", sorted(folder.name for folder in PLUGINS.iterdir() if (folder / "__init__.py").exists()))
def test_plugins_import_the_documented_api(plugin: str) -> None:
    api, own = documented(), f"clip_negatives_plugins.{plugin}."
    for file in (PLUGINS / plugin).glob("*.py"):
        imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        for module, name in [(node.module or "", alias.name) for node in imports for alias in node.names]:
            if module.startswith("clip_negatives") and not f"{module}.".startswith(own):
                members = api.get(module, set()) or {name}
                known = module == "clip_negatives" or f"{module}.{name}" in api or (module in api and name in members)
                assert known, f"{file.name} imports {module}.{name}, which docs/api does not document"
