"""Registry of plugins: find them, list what they register, build objects from a name and options.

Plugins are modules named by entry points of the group ``clip_negatives``, imported on first use. Unlike pluggy, this module
raises an error for two entry points with one name, a plugin that fails to import, and a misspelt hook.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, Literal, NamedTuple, get_args

import pluggy

from clip_negatives.errors import DuplicateNameError, PluginLoadError, UnknownNameError
from clip_negatives.host import hookspecs
from clip_negatives.host.options import Option, bind_options, options_of, parse_spec
from clip_negatives.plugin_code import no_exit

Kind = Literal["clusterer", "negative_sampler", "loss_weighting"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DISABLED_VARIABLE = "CLIP_NEGATIVES_DISABLED_PLUGINS"  # environment variable: entry points to skip, separated by commas


class _Origin(NamedTuple):
    """An entry point, with name and version of its distribution."""

    entry: EntryPoint
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class Registration:
    """One factory that a plugin registers."""

    kind: Kind
    name: str
    plugin: str  # name of the entry point
    distribution: str
    version: str
    factory: Any
    options: tuple[Option, ...]  # in the order of the factory's signature
    module: str  # of the entry point

    @property
    def docstring(self) -> str:
        """Return the docstring of the factory itself, not of its base classes; empty if its author wrote none."""
        documented = self.factory.func if isinstance(self.factory, functools.partial) else self.factory
        docstring = inspect.cleandoc(documented.__doc__ or "")
        if isinstance(documented, type) and is_dataclass(documented) and docstring.startswith(f"{documented.__name__}("):
            return ""  # the signature, which `dataclass` writes
        return docstring

    @property
    def requires_clusters(self) -> bool:
        """Return whether the plugin needs clusters of the data (attribute of the factory, default True)."""
        return bool(getattr(self.factory, "requires_clusters", True))

    @property
    def requires_logit_bias(self) -> bool:
        """Return whether the weighting needs a model with a logit bias (attribute of the factory, default False)."""
        return bool(getattr(self.factory, "requires_logit_bias", False))

    @property
    def keeps_native_order(self) -> bool:
        """Return whether the sampler leaves batches unchanged, and so works with streams (default False)."""
        return bool(getattr(self.factory, "keeps_native_order", False))


class Registry:
    """All factories that the plugins of some installed distributions register.

    Args:
        installed: distributions whose entry points are read; None takes everything installed.
        disabled: entry points to skip; None reads ``CLIP_NEGATIVES_DISABLED_PLUGINS``.

    Raises:
        DuplicateNameError: two entry points, or two factories of one kind, have the same name.
        PluginLoadError: a plugin fails to import or has invalid hooks.
    """

    def __init__(self, installed: Iterable[Distribution] | None = None, disabled: Iterable[str] | None = None) -> None:
        names = os.environ.get(DISABLED_VARIABLE, "").split(",") if disabled is None else disabled
        skipped_names = {name.strip() for name in names}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._items: dict[tuple[Kind, str], Registration] = {}
        for origin in _unique_entries(distributions() if installed is None else installed):
            if origin.entry.name not in skipped_names:
                self._load(origin)

    def items(self, kind: Kind | None = None) -> list[Registration]:
        """Return all registrations, or those of `kind`, sorted by kind and name."""
        items = [item for item in self._items.values() if kind in (None, item.kind)]
        return sorted(items, key=lambda item: (KINDS.index(item.kind), item.name))

    def get(self, kind: Kind, name: str) -> Registration:
        """Return the registration called `name`; an `UnknownNameError` lists the names and suggests the nearest."""
        if (kind, name) not in self._items:
            raise UnknownNameError.of(kind.replace("_", " "), name, (item.name for item in self.items(kind)))
        return self._items[kind, name]

    def resolve(self, kind: Kind, spec: str) -> tuple[Registration, dict[str, Any]]:
        """Return the registration and the typed options of `spec`: ``name`` or ``name:key=value,key=value``.

        A `PluginError` says which name, option or value is wrong.
        """
        name, values = parse_spec(spec)
        item = self.get(kind, name)
        return item, bind_options(item.name, item.options, values)

    def create(self, kind: Kind, spec: str, *context: Any) -> Any:
        """Return a new object for `spec`. The factory gets `context` (a sampler: its `SamplingContext`), then the options."""
        item, options = self.resolve(kind, spec)
        with no_exit():
            return item.factory(*context, **options)

    def _load(self, origin: _Origin) -> None:
        manager = self._manager
        with _reported(origin, "fails to import"):
            module = origin.entry.load()
        with _reported(origin, "has invalid hooks"):
            manager.register(module, name=origin.entry.name)
            manager.check_pending()
            if not manager.get_hookcallers(module):
                raise PluginLoadError("it implements no hook; mark one with clip_negatives.hookimpl")
        skipped = [plugin for plugin in manager.get_plugins() if plugin is not module]
        for kind in KINDS:
            hook = f"clip_negatives_register_{kind}s"
            with _reported(origin, f"has an invalid hook {hook}"):
                for factories in manager.subset_hook_caller(hook, skipped)():
                    self._register(kind, factories, origin)

    def _register(self, kind: Kind, factories: Mapping[str, Any], origin: _Origin) -> None:
        if not isinstance(factories, Mapping) or not all(isinstance(name, str) for name in factories):
            raise PluginLoadError(f"Expected a mapping from names to factories, got {factories!r}.")
        for name, factory in factories.items():
            if not callable(factory):
                raise PluginLoadError(f"The factory {name!r} must be callable, got {factory!r}.")
            options = options_of(factory, skip=1 if kind == "negative_sampler" else 0)
            entry, distribution, version = origin
            item = Registration(kind, name, entry.name, distribution, version, factory, options, entry.module)
            first = self._items.setdefault((kind, name), item)
            if first is not item:
                origins = " and ".join(f"plugin {it.plugin!r} ({it.distribution} {it.version})" for it in (first, item))
                raise DuplicateNameError(
                    f"Two plugins register a {kind.replace('_', ' ')} named {name!r}: {origins}. "
                    f"Uninstall one, or set {DISABLED_VARIABLE} to the plugin to leave out."
                )


@contextmanager
def _reported(origin: _Origin, fault: str) -> Iterator[None]:
    """Turn any error of plugin code into a `PluginLoadError` that names the plugin and how to continue without it."""
    try:
        yield
    except DuplicateNameError:
        raise
    except (Exception, SystemExit) as error:
        known = isinstance(error, (PluginLoadError, pluggy.PluginValidationError))
        reason = " ".join((str(error) if known else f"{type(error).__name__}: {error}").split()).rstrip(".")
        entry, name, version = origin
        raise PluginLoadError(
            f"The plugin {entry.name!r} ({entry.value}) of {name} {version} {fault}: {reason}. "
            f"Repair or uninstall {name}, or set {DISABLED_VARIABLE}={entry.name} to continue without it."
        ) from error


def _named(distribution: Distribution) -> tuple[str, str]:
    """Return name and version of a distribution; without metadata, as after a broken uninstall, its folder is its name."""
    try:
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
    except Exception:  # another one in each version of Python
        name = version = ""
    return name or str(getattr(distribution, "_path", "a distribution without a name")), version or "of unknown version"


def _unique_entries(installed: Iterable[Distribution]) -> list[_Origin]:
    """Return the entry points of the group ``clip_negatives``, sorted by name."""
    # A distribution may be listed twice: installed, and as a source folder on the path. Use the first with plugins.
    distinct: dict[str, list[_Origin]] = {}
    for distribution in installed:
        if entries := distribution.entry_points.select(group=hookspecs.PROJECT):  # reading all metadata would take long
            name, version = _named(distribution)
            distinct.setdefault(name, [_Origin(entry, name, version) for entry in entries])
    origins = sorted((origin for part in distinct.values() for origin in part), key=lambda origin: origin.entry.name)
    for first, second in itertools.pairwise(origins):
        if first.entry.name == second.entry.name:
            raise DuplicateNameError(
                f"Two distributions have a plugin named {first.entry.name!r}: {first.distribution} {first.version} and "
                f"{second.distribution} {second.version}. Uninstall one of them."
            )
    return origins


@functools.cache
def default_registry() -> Registry:
    """Return the registry of all installed plugins; they are loaded once per process."""
    return Registry()


def create(kind: Kind, spec: str, *context: Any) -> Any:
    """Return a new object for `spec` from the installed plugins, see `Registry.create`."""
    return default_registry().create(kind, spec, *context)
