"""List the plugins."""

from __future__ import annotations

import itertools

import click

from clip_negatives import registry


@click.command()
def plugins() -> None:
    """List clusterers, negative samplers and loss weightings, with where each comes from and its options."""
    found = registry.default_registry().items()
    for kind, items in itertools.groupby(found, key=lambda item: item.kind):
        click.secho(f"{kind.replace('_', ' ')}s", bold=True)
        for item in items:
            origin = f"plugin {item.plugin} of {item.distribution} {item.version}"
            click.echo(f"  {click.style(item.name, fg='cyan')}  ({origin})")
            for option in item.options:
                click.echo(f"    {option}")
            if not item.options:
                click.echo("    no options")
