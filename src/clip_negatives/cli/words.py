"""What the commands share: names of plugins, which a shell can complete, files to write, and examples in their help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from clip_negatives.registry import Kind, Registered


class PluginName(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Take NAME or NAME:key=value,... of a plugin; what it stands for is looked up by whoever uses it.

    Args:
        kinds: of which plugins a shell is to offer the names.
        several: whether names stand one after the other, as METHOD,METHOD or SAMPLER+WEIGHTING.
        more: names beside those of plugins.
    """

    name = "plugin"

    def __init__(self, *kinds: Kind, several: bool = False, more: tuple[str, ...] = ()) -> None:
        self.kinds, self.several, self.more = kinds, several, more

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names, or after NAME: the options, that go on from what was typed."""
        start = max(incomplete.rfind(","), incomplete.rfind("+")) + 1 if self.several else 0
        done, begun = incomplete[:start], incomplete[start:]
        found = [item for item in _registered() if item.kind in self.kinds]
        name, colon, options = begun.partition(":")
        if colon and not self.several:
            # After NAME: and after each comma comes the next key.
            given, _, key = options.rpartition(",")
            keys = [option.name for item in found if item.name == name for option in item.options]
            before = f"{name}:{given}," if given else f"{name}:"
            return [CompletionItem(f"{before}{one}=") for one in keys if one.startswith(key)]
        names = sorted({*self.more, *(item.name for item in found)})
        return [CompletionItem(done + one) for one in names if one.startswith(begun)]


FILE = click.Path(dir_okay=False, path_type=Path)
"""A file that is written: a folder of that name is refused."""

CLUSTERER = PluginName("clusterer")
SAMPLER = PluginName("negative_sampler")
WEIGHTING = PluginName("loss_weighting")
ANY = PluginName("clusterer", "negative_sampler", "loss_weighting")


def examples(*lines: str, more: str = "") -> str:
    """Return an epilog with commands that are shown as they stand."""
    shown = "\n".join(f"  {line}" for line in lines)
    return f"\b\nExamples:\n{shown}" + (f"\n\n{more}" if more else "")


def _registered() -> list[Registered]:
    from clip_negatives import registry

    items: list[Registered] = registry.default_registry().items()
    return items
