"""The command `completion`: the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from clip_negatives.cli import parameters
from clip_negatives.cli.output import write_text

PROGRAM, VARIABLE = "clip-negatives", "_CLIP_NEGATIVES_COMPLETE"  # click reads the variable when a shell completes a line

INSTALL = """\b
Install:
  clip-negatives completion bash >> ~/.bashrc
  clip-negatives completion zsh >> ~/.zshrc
  clip-negatives completion fish > \\
      ~/.config/fish/completions/clip-negatives.fish
In ~/.zshrc, the script must stand after compinit. Then open a new shell.
"""


@parameters.command("clip-negatives completion bash", notes=INSTALL)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands in a shell.

    With it, the Tab key completes commands, options, and names of plugins with their
    options.
    """
    from clip_negatives.cli import main

    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise LookupError(f"click has no completion for {shell}")
    write_text(completion_class(main, {}, PROGRAM, VARIABLE).source())
