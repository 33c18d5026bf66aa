"""The command `plugins`: list, check or create plugins."""

from __future__ import annotations

import itertools
from pathlib import Path

import click
from rich.padding import Padding
from rich.table import Table

from clip_negatives.cli import parameters
from clip_negatives.cli.next_command import TRAIN_DATA, show_next
from clip_negatives.cli.output import console, echo
from clip_negatives.errors import UnknownNameError
from clip_negatives.host import registry
from clip_negatives.host.options import parse_spec

KINDS = {kind.replace("_", "-"): kind for kind in registry.KINDS}
COLOURS = {"passed": "green", "not applicable": "dim", "failed": "bold red"}


@parameters.command(
    "clip-negatives plugins",
    "clip-negatives plugins check weighted_infonce:beta=2",
    make=click.group,
    invoke_without_command=True,
)
@click.pass_context
def plugins(context: click.Context) -> None:
    """List, check or create plugins.

    Without a command: list all clusterers, negative samplers and loss weightings
    with their origin and options.
    """
    if context.invoked_subcommand is None:
        for kind, items in itertools.groupby(registry.default_registry().items(), key=lambda item: item.kind):
            echo(f"{kind.replace('_', ' ')}s", bold=True)
            for item in items:
                echo(f"  {item.name}", fg="cyan", nl=False)
                echo(f"  (plugin {item.plugin} of {item.distribution} {item.version})")
                for option in item.options or ("no options",):
                    echo(f"    {option}")
        show_next("plugins", "new", "my-sampler")


@parameters.command("clip-negatives plugins check cluster_similarity:image_quantile=0.9", make=plugins.command)
@click.argument("name", type=parameters.PluginName(*registry.KINDS))
@click.option("--kind", type=click.Choice(list(KINDS)), help="Kind of plugin, if two kinds share the name.")
def check(name: str, kind: str | None) -> None:
    """Run the conformance checks on a plugin.

    NAME can have options: NAME:key=value,... The exit code is 1 if a check fails.
    """
    from clip_negatives.testing import Subject, outcomes

    plugin_name = parse_spec(name)[0]
    items = registry.default_registry().items()
    kinds = [item.kind for item in items if item.name == plugin_name] if kind is None else [KINDS[kind]]
    if not kinds:
        raise UnknownNameError.of("plugin", plugin_name, {item.name for item in items})
    results = {kind: list(outcomes(Subject.of(kind, name))) for kind in kinds}
    for kind_of_plugin, rows in results.items():
        table = Table("check and requirement", "outcome", title=f"{kind_of_plugin.replace('_', ' ')} {name}")
        for result in rows:
            outcome = f"{result.status}: {result.message}" if result.message else result.status
            table.add_row(result.check, outcome, style=COLOURS.get(result.status))
            table.add_row(Padding(result.requirement, (0, 0, 0, 2)), style="dim")
        console().print(table)
    if any(result.needs_change for rows in results.values() for result in rows):
        raise SystemExit(1)
    if kinds == ["clusterer"]:
        show_next("prepare", TRAIN_DATA, "clusters/", "--clusterer", name)
    else:
        show_next("compare", "--quick", "--methods", name)


@parameters.command(
    "clip-negatives plugins new my-sampler",
    "clip-negatives plugins new my-weighting --kind loss-weighting",
    make=plugins.command,
)
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), default="negative-sampler", help="Kind of plugin.")
@click.option("--output", default=".", type=parameters.FOLDER, help="Parent folder of the new folder NAME.")
def new(name: str, kind: str, output: Path) -> None:
    """Write a new plugin to start from.

    The folder NAME gets a plugin that installs, passes its checks and trains.
    """
    from clip_negatives.scaffold import new_plugin

    folder = new_plugin(name, KINDS[kind], directory=output)
    echo(f"{folder}: see its README to install, check and use it.")
    show_next("install", "-e", folder, program="pip")
