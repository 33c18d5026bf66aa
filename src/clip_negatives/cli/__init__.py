"""The command line: one file per command. Any error of ours is one sentence on stderr and exit code 2; Ctrl-C gives 130."""

from __future__ import annotations

import importlib
import signal
from typing import Any

import click

from clip_negatives import __version__
from clip_negatives.errors import ClipNegativesError

COMMANDS = ("catalogue", "compare", "generate", "inspect", "labels", "meter", "plugins", "prepare", "reshard", "train")
"""Each is the object of that name in the module of that name; imported when it is used, so that --help is quick."""


class Commands(click.Group):
    """Import a command when it is asked for, and report our errors as a sentence."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command `name`, or None where there is none."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"clip_negatives.cli.{name}"), name)
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run the command; one of our errors ends it with a sentence and exit code 2, Ctrl-C with that of a shell."""
        try:
            return super().invoke(context)
        except ClipNegativesError as error:
            click.echo(f"Error: {printable(str(error))}", err=True)
            context.exit(2)
        except KeyboardInterrupt:
            click.echo("Stopped. What is finished is kept.", err=True)
            context.exit(128 + signal.SIGINT)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="clip-negatives")
def main() -> None:
    """Decide which incorrect pairs a CLIP model is trained on, and how much each one counts."""


def printable(text: str) -> str:
    """Return a text with what a terminal would obey, or could not show, as escapes: names and keys come from data."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode() for letter in text
    )
