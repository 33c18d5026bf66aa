"""The command line. An error of this package is one line on stderr and exit code 2."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from clip_negatives import __version__
from clip_negatives.cli.groups import Group
from clip_negatives.cli.output import echo
from clip_negatives.errors import ClipNegativesError
from clip_negatives.printing import printable
from clip_negatives.progress import shown

# Module of each command. A module is imported when its command runs, to keep --help fast.
COMMANDS = {
    **dict.fromkeys(("generate", "prepare", "reshard"), "pipelines"),
    **dict.fromkeys(("compare", "train"), "training"),
    **dict.fromkeys(("inspect", "meter"), "reports"),
    "catalogue": "catalogue",
    "check": "checking",
    "choose": "choosing",
    "completion": "completion",
    "labels": "labels",
    **dict.fromkeys(("assign", "centroids", "encode"), "tasks"),
    "plugins": "plugins",
}

WRITERS = ("click.utils", "rich.console", __name__)  # modules that write to stdout


# What Ctrl-C leaves, and how to continue.
CONTINUED = "Finished parts are kept. Run the same command again to continue."
KEPT = {
    **dict.fromkeys(("assign", "check", "encode", "generate", "prepare", "reshard"), CONTINUED),
    **dict.fromkeys(("inspect", "meter"), "Encoded data are kept. Run the same command again to continue."),
    **dict.fromkeys(("catalogue", "centroids", "labels"), "Nothing was written. Run the same command again."),
    "choose": "Finished runs are kept. Run the same command again to continue.",
    "train": "Encoded data and checkpoints are kept. To continue from a checkpoint, add --name RUN --resume latest.",
}


class UsageError(click.ClickException):
    """An error of the command line on one line, with the command that prints the help."""

    exit_code = 2

    def __init__(self, error: click.UsageError) -> None:
        fault = printable(error.format_message().rstrip())
        path = "clip-negatives" if error.ctx is None else error.ctx.command_path
        super().__init__(f"{fault}{'' if fault.endswith(('.', '?')) else '.'} Help: {printable(path)} --help")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Replace click's usage errors, which print several lines, and escape the control characters of quoted arguments."""
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise UsageError(error) from None
    except click.ClickException as error:
        error.message = printable(error.message)  # type: ignore[misc]  # final
        raise


class Commands(Group):
    """Group of commands that are imported on use. It prints an error of this package as one line."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands."""
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command `name`, or None if there is none."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"clip_negatives.cli.{COMMANDS[name]}"), name)
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; exit with code 2 if stdout cannot be written.

        Characters that the encoding of stdout lacks are escaped.
        """
        if isinstance(sys.stdout, io.TextIOWrapper):
            with suppress(OSError):  # reconfigure fails if the file behind stdout was replaced by a pipe
                sys.stdout.reconfigure(errors="backslashreplace")
        try:
            try:
                return super().main(*args, **extra)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except OSError as error:
            *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
            if innermost.f_globals["__name__"] not in WRITERS:
                raise
            if sys.stdout is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # because Python flushes stdout again at exit
            with suppress(OSError):
                echo(f"Error: The output cannot be written: {error.strerror}. Write it to another file.", err=True)
            sys.exit(2)

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Read the arguments before the name of the command."""
        with one_line_errors():
            return super().parse_args(context, arguments)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; exit with code 2 after an error of this package, 130 after Ctrl-C."""
        try:
            with one_line_errors(), shown(os.environ.get("RANK", "0") == "0"):
                return super().invoke(context)
        except ClipNegativesError as error:
            echo(f"Error: {error}", err=True)
            context.exit(2)
        except KeyboardInterrupt:
            echo(" ".join(["Stopped.", *filter(None, [KEPT.get(str(context.invoked_subcommand))])]), err=True)
            context.exit(128 + signal.SIGINT)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="clip-negatives")
def main() -> None:
    """Choose the incorrect pairs that a CLIP model trains on, and their weights.

    Start with `check`, which says whether your data have false negatives, and
    what to do. `train` trains with open_clip, and `compare` compares several
    methods. Help for one command: COMMAND --help.
    """
