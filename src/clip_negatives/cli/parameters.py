"""Options, parameter types and help texts that several commands share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from clip_negatives.advice import named
from clip_negatives.dataset.columns import Columns
from clip_negatives.dataset.kinds import KINDS
from clip_negatives.distributed.child import usable_cores
from clip_negatives.host.method import Method
from clip_negatives.pipelines.recipe import Recipe

if TYPE_CHECKING:
    from clip_negatives.host.registry import Kind

Command = Callable[..., Any]
MAX_WORKERS = 8  # default; each process takes memory for torch and the features


class PluginName(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Type of a parameter ``NAME`` or ``NAME:key=value,...``, with shell completion. It does not check that the plugin exists.

    Args:
        kinds: kinds of plugins whose names are completed.
        is_list: whether the value is a list such as ``METHOD,METHOD`` or ``SAMPLER+WEIGHTING``.
        extra_names: further names to complete.
    """

    name = "plugin"

    def __init__(self, *kinds: Kind, is_list: bool = False, extra_names: tuple[str, ...] = ()) -> None:
        self.kinds, self.is_list, self.extra_names = kinds, is_list, extra_names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the plugin names that continue the text; after ``NAME:``, the option names."""
        from clip_negatives.host import registry

        start = max(incomplete.rfind(","), incomplete.rfind("+")) + 1 if self.is_list else 0
        prefix, typed = incomplete[:start], incomplete[start:]
        plugins = [item for item in registry.default_registry().items() if item.kind in self.kinds]
        name, colon, options = typed.partition(":")
        if colon and not self.is_list:
            complete, comma, typed = options.rpartition(",")
            prefix = f"{name}:{complete}{comma}"
            names = [f"{option.name}=" for item in plugins if item.name == name for option in item.options]
        else:
            names = sorted({*self.extra_names, *(item.name for item in plugins)})
        return [CompletionItem(prefix + candidate) for candidate in names if candidate.startswith(typed)]


def _plugin_option(name: str, kind: Kind, default: str) -> Command:
    help_text = f"{kind.replace('_', ' ').capitalize()}, NAME or NAME:key=value,..."
    return click.option(name, default=default, type=PluginName(kind), help=help_text)


def collected(argument: str, dataclass: type[Any], *options: Command) -> Command:
    """Return a decorator that adds `options` to a command, and passes their values in a `dataclass` as one `argument`."""
    names = {field.name for field in dataclasses.fields(dataclass)}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(**values: Any) -> Any:
            fields = {name: values.pop(name) for name in names & set(values)}
            return command(**{argument: dataclass(**fields)}, **values)

        return functools.reduce(lambda decorated, option: option(decorated), reversed(options), call)

    return decorate


FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(path_type=Path)

sampler_option = _plugin_option("--sampler", "negative_sampler", Method.sampler)
weighting_option = _plugin_option("--weighting", "loss_weighting", Method.weighting)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Samples per step, all processes together.  [default: 256, or all samples if they are fewer]",
)
json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="Also write the result to this JSON file. - is stdout; the tables then go to stderr.",
)
workers_option = click.option(
    "--workers",
    default=lambda: min(usable_cores(), MAX_WORKERS),
    type=click.IntRange(min=1),
    show_default=f"the number of cores, at most {MAX_WORKERS}",
    help="Processes that compare methods, each with one core.",
)
decided_option = click.option(
    "--decided", type=FILE, help="The suspects.csv of `check`, with your decisions: same pairs become one group."
)
dataset_type_option = click.option(
    "--dataset-type", type=click.Choice(["auto", *KINDS]), default="auto", help="Format of the data."
)

_COLUMNS = (  # each option also has open_clip's name
    click.option("--separator", "--csv-separator", "separator", help="Csv column separator.  [default: detected]"),
    click.option("--image-key", "--csv-img-key", "image", help="Column with the image or its path.  [default: detected]"),
    click.option(
        "--caption-key",
        "--csv-caption-key",
        "text",
        help="Column with the caption. Tars: ending of a file, or json field.  [default: detected; tars: txt]",
    ),
)
_GROUP = click.option(
    "--group-column",
    "group",
    help="Column (tars: json field) with the item id. Two samples with the same id are a correct pair.",
)
_KEYS = (
    click.option("--key-column", "key", help="Column with the key of the sample in its tar.  [default: row number]"),
    click.option("--shard-column", "shard", help="Column with the tar that holds the sample."),
    click.option(
        "--shard-pattern", help="Tar of a key, such as '{key:.5}.tar' for the first five characters, as img2dataset names tars."
    ),
)
column_options = collected("columns", Columns, *_COLUMNS, _GROUP)
column_and_key_options = collected("columns", Columns, *_COLUMNS, _GROUP, *_KEYS)

_ENCODERS = (
    click.option("--image-encoder", default=Recipe.image_encoder, help="Image encoder for clustering."),
    click.option("--text-encoder", default=Recipe.text_encoder, help="Text encoder for clustering."),
)
_CLUSTERERS = (
    _plugin_option("--clusterer", "clusterer", Recipe.clusterer),
    click.option("--text-clusterer", type=PluginName("clusterer"), help="Clusterer of the captions.  [default: --clusterer]"),
)
feature_dtype_option = click.option(
    "--feature-dtype", default=Recipe.feature_dtype, type=click.Choice(["float32", "float16"]), help="Dtype of the features."
)

# These pass a `Recipe` as the argument `recipe`. Column options go above this decorator: they become part of the recipe.
recipe_options = collected("recipe", Recipe, *_ENCODERS, *_CLUSTERERS)
encoder_options = collected("recipe", Recipe, *_ENCODERS)
clusterer_options = collected("recipe", Recipe, *_CLUSTERERS)


def command(*examples: str, notes: str = "", make: Command = click.command, **options: Any) -> Command:
    """Return a decorator that makes a click command; its help shows defaults, and ends with `examples` and `notes`.

    Error messages of the command name its own options, see `clip_negatives.advice.argument`.
    """
    lines = "\n".join(f"  {line}" for line in examples)
    epilog = f"\b\nExamples:\n{lines}\n\n{notes}"
    decorator: Command = make(context_settings={"show_default": True}, epilog=epilog, **options)

    def decorate(function: Command) -> Any:
        click_command = decorator(function)
        names = {str(parameter.name): _shown_name(parameter) for parameter in click_command.params}
        click_command.callback = named(names)(click_command.callback)
        return click_command

    return decorate


class OptionsOnBothSides(click.Command):
    """A command whose arguments go to open_clip. Its own options and those of open_clip may stand before or after ``--``.

    Options that the command does not know go to open_clip, whose parser checks them. ``-- --help`` prints the help
    of open_clip.
    """

    ignore_unknown_options = True

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Read the arguments of both sides as one list."""
        if "--" in arguments:
            place = arguments.index("--")
            before, after = arguments[:place], arguments[place + 1 :]
            if not {"-h", "--help"} & set(after):
                arguments = [*before, *after]
        return super().parse_args(context, arguments)


def open_clip_arguments(arguments: Sequence[str], columns: Columns) -> list[str]:
    """Return open_clip's arguments with the options of `columns`, which the command has read."""
    options = {"--csv-separator": columns.separator, "--csv-img-key": columns.image, "--csv-caption-key": columns.text}
    return [*arguments, *(part for name, value in options.items() if value is not None for part in (name, value))]


def _shown_name(parameter: click.Parameter) -> str:
    """Return the name of a parameter in error messages, such as --csv-separator or DATA."""
    return parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.name).upper()
