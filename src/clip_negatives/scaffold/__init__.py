"""Begin a plugin: a whole distribution that installs, passes the conformance kit and trains as it was written."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from clip_negatives import __version__, registry
from clip_negatives.atomic import replaced_folder
from clip_negatives.errors import InputError
from clip_negatives.registry import Kind

__all__ = ["new_plugin"]

NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
"""What a distribution, its module and what it registers can all be called."""


def new_plugin(name: str, kind: Kind = "negative_sampler", *, directory: str | Path = ".") -> Path:
    """Write a distribution with a plugin of `kind` into a new folder `directory`/`name`, atomically.

    It holds a ``pyproject.toml`` with the entry point, the plugin, a test that runs the conformance kit, and a README. What it
    registers is `name` with underscores.

    Args:
        name: lower-case words joined by - or _.
        kind: "clusterer", "negative_sampler" or "loss_weighting".
        directory: where the folder is made.

    Returns:
        The folder.

    Raises:
        InputError: the name cannot be one, is taken by a plugin or a module, or there is such a folder.
        ArtifactError: it cannot be written.
    """
    module = _module(name, kind)
    target = Path(directory) / name
    if target.exists():
        raise InputError(f"Expected a new folder, got {target}, which is there already. Choose another name or --output.")
    names = {
        "distribution": name.replace("_", "-"),
        "module": module,
        "kind": kind,
        "words": kind.replace("_", " "),
        "class_name": "".join(word.capitalize() for word in module.split("_")),
        "version": __version__,
    }
    templates = Environment(  # noqa: S701  (code and text, not HTML)
        loader=PackageLoader("clip_negatives.scaffold"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    with replaced_folder(target, known_by="pyproject.toml") as folder:
        for template, file in (
            ("pyproject.toml", "pyproject.toml"),
            ("README.md", "README.md"),
            (f"{kind}.py", f"{module}/__init__.py"),
            ("test_plugin.py", f"tests/test_{module}.py"),
        ):
            written = folder / file
            written.parent.mkdir(exist_ok=True)
            written.write_text(templates.get_template(f"{template}.j2").render(names))
    return target


def _module(name: str, kind: Kind) -> str:
    """Return the name of the module, once nothing else has it."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise InputError(f"Expected a name of lower-case words joined by - or _, such as my-sampler, got {name!r}.")
    module = name.replace("-", "_")
    taken = {item.name: item.distribution for item in registry.default_registry().items(kind)}
    if module in taken:
        raise InputError(f"Expected a new name, got {module!r}, a {kind.replace('_', ' ')} of {taken[module]}. Choose another.")
    if importlib.util.find_spec(module) is not None:
        raise InputError(f"Expected a new name, got {module!r}, which is a module that is installed. Choose another.")
    return module
