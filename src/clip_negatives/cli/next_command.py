"""The next command to run, which a command prints last, on stderr. `check --decided` prints two.

Each command calls `show_next` at its end, so a search for ``show_next(`` lists what follows each command. `TRAIN_DATA`,
`TEST_DATA` and `TARS` stand for data that the command does not know.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from clip_negatives.cli.output import echo

if TYPE_CHECKING:
    from clip_negatives.storage.clusters_folder import ClustersFolder

TRAIN_DATA, TEST_DATA, TARS = "TRAIN_DATA", "TEST_DATA", "TARS"
MODEL = ("--model", "ViT-B-32")
COLUMNS = ("separator", "image", "text", "group")
RECIPE = ("image_encoder", "text_encoder", "clusterer", "text_clusterer")
METHOD = ("sampler", "weighting")


def show_next(*words: str | Path, **arguments: Any) -> None:
    """Print the next command to run on stderr; under torchrun, the caller does so on rank 0 only. See `command_line`."""
    show_line(command_line(*words, **arguments))


def show_line(line: str) -> None:
    """Print a line of `command_line` as the next command to run, on stderr."""
    echo(f"Next: {line}", err=True)


def stream_options(folder: ClustersFolder) -> tuple[str, ...]:
    """Return the arguments of open_clip that a training on the tars of a clusters folder needs; none for a table."""
    is_of_tars = "shard" in folder.samples.column_names
    return ("--train-num-samples", str(folder.clusters.n_samples)) if is_of_tars else ()


def command_line(
    *words: str | Path, options: Iterable[str] = (), after: Sequence[str] = (), program: str = "clip-negatives"
) -> str:
    """Return a command, quoted for a shell.

    Args:
        words: the command and its arguments.
        options: parameters of the running command that the next one has too. Those that the user gave are repeated.
        after: arguments of open_clip, after ``--``.
        program: the program.
    """
    return shlex.join([program, *map(str, words), *_given(options), *(("--", *after) if after else ())])


def without_options(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """Return arguments of open_clip without the options `names`, each with one value.

    Examples:
        >>> without_options(["--name", "a", "--lr", "1e-3", "--seed=3"], ["--name", "--seed"])
        ['--lr', '1e-3']
    """
    pairs = zip(["", *arguments], arguments, strict=False)
    return [argument for before, argument in pairs if before not in names and argument.partition("=")[0] not in names]


def numbered(names: Sequence[str]) -> str | None:
    """Return the brace notation of names that differ in a number, in steps of 1; None for other names.

    Examples:
        >>> numbered(["s3://a/08.tar", "s3://a/09.tar", "s3://a/10.tar"])
        's3://a/{08..10}.tar'
        >>> numbered(["a.tar"]), numbered(["1.tar", "3.tar"])
        ('a.tar', None)
    """
    ordered = sorted(set(names))
    if len(ordered) < 2:
        return ordered[0] if ordered else None
    first, last = (re.split(r"(\d+)", name) for name in (ordered[0], ordered[-1]))
    differing = [place for place, parts in enumerate(itertools.zip_longest(first, last)) if parts[0] != parts[1]]
    if len(differing) != 1 or differing[0] % 2 == 0 or len(first) != len(last):
        return None
    place = differing[0]
    start, stop = first[place], last[place]
    before, after = "".join(first[:place]), "".join(first[place + 1 :])
    expected = [f"{before}{number:0{len(start)}d}{after}" for number in range(int(start), int(stop) + 1)]
    is_plain = len(start) == len(stop) and not set("{}") & set(before + after)
    return f"{before}{{{start}..{stop}}}{after}" if is_plain and expected == ordered else None


def _given(names: Iterable[str]) -> list[str]:
    """Return the options among these parameters of the running command that the user gave, with their values."""
    context = click.get_current_context()
    options: dict[str, Any] = {str(parameter.name): parameter.opts[0] for parameter in context.command.params}
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return [word for name in given for word in _words(options[name], context.params[name])]


def _words(option: str, value: Any) -> tuple[str, ...]:
    """Return an option as the words of a command; an option that is on or off has no value."""
    return (option,) if value is True else (option, str(value))


def same_command(after: Sequence[str]) -> str:
    """Return the running command with the options that the user gave, without ``--json``; `after` are open_clip's arguments."""
    context = click.get_current_context()
    names = [str(name) for name in context.params if name not in ("json_file", "open_clip_arguments")]
    return command_line(str(context.command.name), options=names, after=after)
