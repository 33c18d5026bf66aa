"""mkdocs hook: adds each page of docs/methods that mkdocs.yml does not list to the navigation, below "The rivals"."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Return the configuration with the pages."""
    rivals = next(entry["The rivals"] for entry in config.nav if "The rivals" in entry)
    pages = sorted(f"methods/{page.name}" for page in (Path(config.docs_dir) / "methods").glob("*.md"))
    rivals += [page for page in pages if page not in config.nav]
    return config
