"""The command `plugins`: list, show, check or create plugins."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.padding import Padding
from rich.table import Table

from clip_negatives.cli import early, parameters
from clip_negatives.cli.docstrings import summary, wrapped
from clip_negatives.cli.groups import Group
from clip_negatives.cli.next_command import TRAIN_DATA, show_next
from clip_negatives.cli.output import console, echo, is_stdout, write_json
from clip_negatives.errors import UnknownNameError
from clip_negatives.host import registry
from clip_negatives.host.method import Method
from clip_negatives.host.options import Option, parse_spec
from clip_negatives.host.registry import Kind, Registration

KINDS = {kind.replace("_", "-"): kind for kind in registry.KINDS}
COLOURS = {"passed": "green", "not applicable": "dim", "failed": "bold red"}
OURS = "clip-negatives"  # distribution of the default plugins
MIN_WIDTH = 20  # of a summary, in a narrow terminal or beside a long name

kind_option = click.option("--kind", type=click.Choice(list(KINDS)), help="Kind of plugin, if two kinds share the name.")


@parameters.command(
    "clip-negatives plugins",
    "clip-negatives plugins show weighted_infonce",
    "clip-negatives plugins check weighted_infonce:beta=2",
    make=click.group,
    cls=Group,
    invoke_without_command=True,
)
@parameters.json_option
@click.pass_context
def plugins(context: click.Context, json_file: Path | None) -> None:
    """List, show, check or create plugins.

    Without a command: list all clusterers, negative samplers and loss weightings.
    """
    if context.invoked_subcommand is not None:
        if json_file is not None:
            context.fail(f"Write --json after the command {context.invoked_subcommand}, not before it.")
        return
    if json_file is not None:
        early.check_output_file(json_file)
    items = registry.default_registry().items()
    _print_list(items, err=is_stdout(json_file))
    write_json(json_file, {"plugins": [_as_dict(item, {}) for item in items]})
    show_next("plugins", "show", items[0].name if items else "NAME")


@parameters.command(
    "clip-negatives plugins show cluster_similarity",
    "clip-negatives plugins show blend:mass=0.3 --json -",
    make=plugins.command,
)
@click.argument("name", type=parameters.PluginName(*registry.KINDS))
@kind_option
@parameters.json_option
def show(name: str, kind: str | None, json_file: Path | None) -> None:
    """Show the origin, the documentation and the options of a plugin.

    NAME can have options: NAME:key=value,... The table then has their values too.
    """
    if json_file is not None:
        early.check_output_file(json_file)
    kinds = _kinds(name, kind)
    resolved = [registry.default_registry().resolve(kind_of_plugin, name) for kind_of_plugin in kinds]
    use = _use(name, kinds)
    for item, given in resolved:
        _print_plugin(item, given, err=is_stdout(json_file))
    write_json(json_file, {"plugins": [_as_dict(item, given) for item, given in resolved]})
    show_next(*use)


def _print_list(items: Sequence[Registration], *, err: bool) -> None:
    """Print name and summary of each plugin; names of plugins of other distributions than ours follow the summary."""
    indent = max((len(item.name) for item in items), default=0) + 4
    width = max(console(stderr=err).width - indent, MIN_WIDTH)
    for kind, group in itertools.groupby(items, key=lambda item: item.kind):
        echo(f"{kind.replace('_', ' ')}s", bold=True, err=err)
        for item in group:
            origin = "" if item.distribution == OURS else f"({item.distribution} {item.version})"
            text = f"{summary(item.docstring)} {origin}".strip()
            first, *more = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
            echo(f"  {item.name:<{indent - 2}}", fg="cyan", nl=False, err=err)
            for line in (first, *(" " * indent + line for line in more)):
                echo(line, err=err)


def _print_plugin(item: Registration, given: Mapping[str, Any], *, err: bool) -> None:
    """Print origin, docstring and options of a plugin, and the values of the options if some are `given`."""
    to = console(stderr=err)
    echo(f"{item.kind.replace('_', ' ')} {item.name}", bold=True, err=err)
    echo(f"plugin {item.plugin} of {item.distribution} {item.version}", err=err)
    for line in ["", *wrapped(item.docstring or "This plugin has no docstring.", to.width), ""]:
        echo(line, err=err)
    if not item.options:
        echo("This plugin has no options.", err=err)
        return
    table = Table("option", "type or values", "default", *(["value"] if given else []))
    for option in item.options:
        value = [_text(given.get(option.name, option.default))] if given else []
        table.add_row(option.name, " | ".join(option.allowed), _text(option.default), *value)
    to.print(table)


def _text(value: object) -> str:
    """Return the value of an option as the command line reads it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _as_dict(item: Registration, given: Mapping[str, Any]) -> dict[str, Any]:
    origin = {"plugin": item.plugin, "distribution": item.distribution, "version": item.version}
    texts = {"summary": summary(item.docstring), "docstring": item.docstring}
    options = [_option_as_dict(option, given.get(option.name, option.default)) for option in item.options]
    return {"kind": item.kind, "name": item.name, **origin, **texts, "options": options}


def _option_as_dict(option: Option, value: object) -> dict[str, Any]:
    return {
        "name": option.name,
        "type": option.type.__name__,
        "choices": list(option.choices) or None,
        "optional": option.optional,
        "default": option.default,
        "value": value,
    }


def _use(name: str, kinds: Sequence[Kind]) -> tuple[str, ...]:
    """Return a command that uses the plugin; values of a weighting that are out of range are an `InputError`."""
    if kinds == ["clusterer"]:
        return "prepare", TRAIN_DATA, "clusters/", "--clusterer", name
    is_fixed = "loss_weighting" in kinds and Method(weighting=name).requires_fixed_temperature
    return "compare", "--quick", "--methods", f"{name}@0.1" if is_fixed else name


def _kinds(name: str, kind: str | None) -> list[Kind]:
    """Return the kinds of plugins called NAME or NAME:key=value,..., or the chosen kind."""
    if kind is not None:
        return [KINDS[kind]]
    plugin_name = parse_spec(name)[0]
    items = registry.default_registry().items()
    if kinds := [item.kind for item in items if item.name == plugin_name]:
        return kinds
    raise UnknownNameError.of("plugin", plugin_name, {item.name for item in items})


@parameters.command("clip-negatives plugins check cluster_similarity:image_quantile=0.9", make=plugins.command)
@click.argument("name", type=parameters.PluginName(*registry.KINDS))
@kind_option
def check(name: str, kind: str | None) -> None:
    """Run the conformance checks on a plugin.

    NAME can have options: NAME:key=value,... The exit code is 1 if a check fails.
    """
    from clip_negatives.testing import Subject, outcomes

    kinds = _kinds(name, kind)
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
    show_next(*_use(name, kinds))


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
