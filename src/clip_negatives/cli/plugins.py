"""List, check and begin plugins."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from clip_negatives import registry
from clip_negatives.cli.words import ANY, examples
from clip_negatives.errors import UnknownNameError
from clip_negatives.options import parse_spec

if TYPE_CHECKING:
    from clip_negatives.registry import Kind
    from clip_negatives.testing import Outcome

KINDS = tuple(kind.replace("_", "-") for kind in registry.KINDS)


@click.group(
    invoke_without_command=True,
    epilog=examples("clip-negatives plugins", "clip-negatives plugins check weighted_infonce:beta=2"),
)
@click.pass_context
def plugins(context: click.Context) -> None:
    """List clusterers, negative samplers and loss weightings, with where each comes from and its options.

    `check` holds one to what its kind must do; `new` begins one of your own.
    """
    if context.invoked_subcommand is None:
        _list()


@plugins.command(
    context_settings={"show_default": True},
    epilog=examples("clip-negatives plugins check cluster_similarity:image_quantile=0.9"),
)
@click.argument("name", type=ANY)
@click.option("--kind", type=click.Choice(KINDS), help="Its kind, where plugins of two kinds have the name.")
def check(name: str, kind: str | None) -> None:
    """Hold a plugin, NAME or NAME:key=value,..., to what its kind must do; exit code 1 where it does not."""
    from clip_negatives.testing import Subject, outcomes

    kinds = _kinds_of(parse_spec(name)[0]) if kind is None else [_kind(kind)]
    found = [(one, list(outcomes(Subject.of(one, name)))) for one in kinds]
    # In a pipe there is no width to keep to: let no column be cut.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for one, results in found:
        console.print(_outcomes_table(f"{one.replace('_', ' ')} {name}", results))
    bad = sum(outcome.bad for _, results in found for outcome in results)
    if bad:
        raise SystemExit(1)


@plugins.command(
    context_settings={"show_default": True},
    epilog=examples("clip-negatives plugins new my-sampler", "clip-negatives plugins new my-weighting --kind loss-weighting"),
)
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="negative-sampler", help="What it is to be.")
@click.option("--output", default=".", type=click.Path(path_type=Path), help="Where its folder is made.")
def new(name: str, kind: str, output: Path) -> None:
    """Write a new folder NAME with a plugin that installs, passes its checks and trains as it is."""
    from clip_negatives.scaffold import new_plugin

    folder = new_plugin(name, _kind(kind), directory=output)
    click.echo(f"{folder}: its README says how to install, check and use it.")


def _kind(name: str) -> Kind:
    return next(kind for kind in registry.KINDS if kind.replace("_", "-") == name)


def _kinds_of(name: str) -> list[Kind]:
    """Return the kinds of which a plugin has the name."""
    found = registry.default_registry().items()
    kinds = [item.kind for item in found if item.name == name]
    if not kinds:
        raise UnknownNameError.of("plugin", name, {item.name for item in found})
    return kinds


def _outcomes_table(title: str, results: list[Outcome]) -> Table:
    table = Table("check", "what must hold", "outcome", title=title)
    colours = {"passed": "green", "not applicable": "dim", "failed": "bold red"}
    for one in results:
        outcome = f"{one.status}: {one.message}" if one.message else one.status
        table.add_row(one.check, one.says, outcome, style=colours.get(one.status))
    return table


def _list() -> None:
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
