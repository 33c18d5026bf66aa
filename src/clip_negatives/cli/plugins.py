"""List the plugins."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from clip_negatives import registry


@click.command()
def plugins() -> None:
    """List clusterers, negative samplers and loss weightings, with where each comes from and its options."""
    table = Table("kind", "name", "plugin", "distribution", "version", "options (type = default)")
    for item in registry.default_registry().items():
        options = "\n".join(str(option) for option in item.options) or "none"
        table.add_row(item.kind.replace("_", " "), item.name, item.plugin, item.distribution, item.version, options)
    console = Console()
    # In a pipe there is no width to keep to: let no column be cut, so that scripts can read every name.
    console.print(table, width=None if console.is_terminal else 200)
