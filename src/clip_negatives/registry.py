"""Find plugins, list what they register, and build it from a name and options.

Plugins are modules named by entry points of the group ``clip_negatives``. They are imported when first asked for. Three
traps of pluggy are closed here: a second entry point of one name (pluggy keeps the first in silence) is an error that names
both distributions; a plugin that does not import is an error that names it and the way to go on without it; a misspelt hook
is an error too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from types import ModuleType
from typing import Any, Literal, cast

import pluggy

from clip_negatives import hookspecs
from clip_negatives.errors import DuplicateNameError, PluginLoadError, UnknownNameError
from clip_negatives.options import Option, bind_options, options_of, parse_spec

Kind = Literal["clusterer", "negative_sampler", "loss_weighting"]
"""The three kinds of plugin."""

KINDS: tuple[Kind, ...] = ("clusterer", "negative_sampler", "loss_weighting")

DISABLED_VARIABLE = "CLIP_NEGATIVES_DISABLED_PLUGINS"
"""Environment variable: entry points to leave out, separated by commas."""


@dataclass(frozen=True, slots=True)
class Registered:
    """Describe one factory that a plugin registers.

    Attributes:
        kind: "clusterer", "negative_sampler" or "loss_weighting".
        name: name by which users choose it.
        plugin: name of the entry point.
        distribution: the distribution that brought the plugin.
        version: version of that distribution.
        factory: what builds it from options.
        options: its options, in the order of its signature.
    """

    kind: Kind
    name: str
    plugin: str
    distribution: str
    version: str
    factory: Any
    options: tuple[Option, ...]

    @property
    def requires_clusters(self) -> bool:
        """Return whether it needs the clusters of the data (``requires_clusters`` on the factory, default True)."""
        return bool(getattr(self.factory, "requires_clusters", True))

    @property
    def requires_logit_bias(self) -> bool:
        """Return whether a weighting trains only models with a logit bias (``requires_logit_bias``, default False)."""
        return bool(getattr(self.factory, "requires_logit_bias", False))

    @property
    def keeps_native_order(self) -> bool:
        """Return whether a sampler leaves the loop's own batches as they are, so that it serves streams too.

        Read from ``keeps_native_order`` on the factory, default False.
        """
        return bool(getattr(self.factory, "keeps_native_order", False))


class Registry:
    """Hold the plugins of a set of distributions.

    Args:
        found: distributions to read entry points from; default is everything installed.
        disabled: names of entry points to leave out; default is the environment variable
            ``CLIP_NEGATIVES_DISABLED_PLUGINS``.

    Raises:
        DuplicateNameError: two entry points, or two factories of a kind, have one name.
        PluginLoadError: a plugin does not import, or has a hook that does not exist or does not fit.
    """

    def __init__(self, found: Iterable[Distribution] | None = None, disabled: Iterable[str] | None = None) -> None:
        names = os.environ.get(DISABLED_VARIABLE, "").split(",") if disabled is None else disabled
        left_out = {name.strip() for name in names}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._items: dict[tuple[Kind, str], Registered] = {}
        entries = _unique_entries(distributions() if found is None else found)
        for name, (entry, distribution) in entries.items():
            if name not in left_out:
                self._add(entry, distribution)

    def items(self, kind: Kind | None = None) -> list[Registered]:
        """Return everything registered, or everything of `kind`, sorted by kind and name."""
        chosen = [item for item in self._items.values() if kind in (None, item.kind)]
        return sorted(chosen, key=lambda item: (KINDS.index(item.kind), item.name))

    def get(self, kind: Kind, name: str) -> Registered:
        """Return what is registered under `name`.

        Raises:
            UnknownNameError: nothing is; the message lists what there is and offers the nearest name.
        """
        if (kind, name) not in self._items:
            raise UnknownNameError.of(kind.replace("_", " "), name, (item.name for item in self.items(kind)))
        return self._items[kind, name]

    def resolve(self, kind: Kind, spec: str) -> tuple[Registered, dict[str, Any]]:
        """Return the item and the typed options that `spec`, ``name`` or ``name:key=value,key=value``, stands for.

        Raises:
            UnknownNameError: no plugin registers the name.
            OptionError: the item has no such option, or the value has another type.
        """
        name, given = parse_spec(spec)
        item = self.get(kind, name)
        return item, bind_options(item.name, item.options, given)

    def create(self, kind: Kind, spec: str, *context: Any) -> Any:
        """Build the object that `spec` stands for; `context` goes before the options (a sampler's `SamplingContext`).

        Raises:
            UnknownNameError: no plugin registers the name.
            OptionError: the item has no such option, or the value has another type.
        """
        item, options = self.resolve(kind, spec)
        return item.factory(*context, **options)

    def _add(self, entry: EntryPoint, distribution: Distribution) -> None:
        """Import the plugin and take in what its hooks return."""
        origin = f"plugin {entry.name!r} ({entry.value}) of {distribution.name} {distribution.version}"
        remedy = f"Repair or uninstall {distribution.name}, or set {DISABLED_VARIABLE}={entry.name} to go on without it."
        try:
            module = cast("ModuleType", entry.load())
        except (Exception, SystemExit) as error:  # A plugin is foreign code: whatever stops it is reported with its name.
            raise PluginLoadError(f"The {origin} does not import: {type(error).__name__}: {error}. {remedy}") from error
        try:
            self._manager.register(module, name=entry.name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginLoadError(f"The {origin} does not fit the hooks: {_one_line(error)}. {remedy}") from error
        if not self._manager.get_hookcallers(module):
            raise PluginLoadError(f"The {origin} implements no hook. Mark one with clip_negatives.hookimpl. {remedy}")
        for kind in KINDS:
            hook = getattr(self._manager.hook, f"clip_negatives_register_{kind}s")
            others = [plugin for plugin in self._manager.get_plugins() if plugin is not module]
            try:
                for factories in self._manager.subset_hook_caller(hook.name, others)():
                    self._take(kind, factories, entry, distribution)
            except DuplicateNameError:
                raise
            except (Exception, SystemExit) as error:
                fault = str(error) if isinstance(error, PluginLoadError) else f"{type(error).__name__}: {error}"
                raise PluginLoadError(
                    f"The {origin} does not fit the hook {hook.name}: {fault.rstrip('.')}. {remedy}"
                ) from error

    def _take(self, kind: Kind, factories: Mapping[str, Any], entry: EntryPoint, distribution: Distribution) -> None:
        """Record the factories of one hook, refusing a name that is taken."""
        if not isinstance(factories, Mapping) or not all(isinstance(name, str) for name in factories):
            raise PluginLoadError(f"Expected a mapping from names to factories, got {factories!r}.")
        for name, factory in factories.items():
            if not callable(factory):
                raise PluginLoadError(f"Expected a factory named {name!r} that can be called, got {factory!r}.")
            taken = self._items.get((kind, name))
            if taken is not None:
                raise DuplicateNameError(
                    f"Expected one {kind.replace('_', ' ')} named {name!r}, got two: from plugin {taken.plugin!r} "
                    f"({taken.distribution} {taken.version}) and from plugin {entry.name!r} ({distribution.name} "
                    f"{distribution.version}). Uninstall one, or set {DISABLED_VARIABLE} to the plugin to leave out."
                )
            skip = 1 if kind == "negative_sampler" else 0
            self._items[kind, name] = Registered(
                kind, name, entry.name, distribution.name, distribution.version, factory, options_of(factory, skip=skip)
            )


def _unique_entries(found: Iterable[Distribution]) -> dict[str, tuple[EntryPoint, Distribution]]:
    """Return the entry points of our group by name; two distributions with one name are an error."""
    entries: dict[str, tuple[EntryPoint, Distribution]] = {}
    seen: set[str] = set()
    for distribution in found:
        # A distribution can be met twice, as installed and as its source folder on the path: the first one counts.
        if distribution.name in seen:
            continue
        seen.add(distribution.name)
        for entry in distribution.entry_points.select(group=hookspecs.PROJECT):
            if entry.name in entries:
                other = entries[entry.name][1]
                raise DuplicateNameError(
                    f"Expected one plugin named {entry.name!r}, got two: from {other.name} {other.version} and from "
                    f"{distribution.name} {distribution.version}. Uninstall one of the two distributions."
                )
            entries[entry.name] = entry, distribution
    return dict(sorted(entries.items()))


def _one_line(error: Exception) -> str:
    """Return pluggy's message, which spans lines, as one sentence without its last full stop."""
    return " ".join(str(error).split()).rstrip(".")


@functools.cache
def default_registry() -> Registry:
    """Return the registry of everything installed; read once in a process.

    Raises:
        DuplicateNameError: two plugins, or two factories, have one name.
        PluginLoadError: a plugin does not import or does not fit the hooks.
    """
    return Registry()


def create(kind: Kind, spec: str, *context: Any) -> Any:
    """Build from the installed plugins what `spec` stands for; see `Registry.create`."""
    return default_registry().create(kind, spec, *context)
