"""A new plugin: a distribution that installs, passes the conformance checks and trains."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from clip_negatives import __version__
from clip_negatives.advice import argument
from clip_negatives.errors import InputError
from clip_negatives.host import registry
from clip_negatives.host.registry import Kind
from clip_negatives.storage.ownership import new_folder

__all__ = ["new_plugin"]

NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")  # valid as the name of a distribution, a module and a plugin


def new_plugin(name: str, kind: Kind = "negative_sampler", *, directory: str | Path = ".") -> Path:
    """Write a distribution with one plugin into the new folder `directory`/`name`, atomically, and return the folder.

    The folder has a ``pyproject.toml`` with the entry point, the plugin, a test that runs the conformance checks, and a README.
    The registered name is `name` with underscores.

    Args:
        name: lower-case words joined by - or _.
        kind: "clusterer", "negative_sampler" or "loss_weighting".
        directory: parent of the new folder.

    Raises:
        InputError: the name is not valid or is taken by a plugin or a module, or the folder exists.
        ArtifactError: the folder cannot be written.
    """
    module = _module(name, kind)
    target = Path(directory) / name
    if target.exists():
        raise InputError(
            f"{target} exists already. Choose another name, or another parent folder with {argument('output', 'directory=')}."
        )
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
    renamed = {f"{kind}.py": f"{module}/__init__.py", "test_plugin.py": f"tests/test_{module}.py"}
    with new_folder(target) as folder:
        for template in ("pyproject.toml", "README.md", *renamed):
            path = folder / renamed.get(template, template)
            path.parent.mkdir(exist_ok=True)
            path.write_text(templates.get_template(f"{template}.j2").render(names))
    return target


def _module(name: str, kind: Kind) -> str:
    """Return the name of the module, or raise InputError if the name is invalid or taken."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise InputError(f"{name!r} is not a valid name. Use lower-case words joined by - or _, such as my-sampler.")
    module = name.replace("-", "_")
    taken = {item.name: item.distribution for item in registry.default_registry().items(kind)}
    if module in taken:
        raise InputError(f"{module!r} is already a {kind.replace('_', ' ')} of {taken[module]}. Choose another name.")
    if importlib.util.find_spec(module) is not None:
        raise InputError(f"{module!r} is already an installed module. Choose another name.")
    return module
