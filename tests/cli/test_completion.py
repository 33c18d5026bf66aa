"""The completion scripts, run by the shells that are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from clip_negatives.cli import main

# Commands that print the completions of "clip-negatives tra", after the script in $1 was read.
COMPLETE = {
    "bash": """source "$1"; COMP_WORDS=(clip-negatives tra); COMP_CWORD=1; _clip_negatives_completion clip-negatives
        echo "${COMPREPLY[@]}"; complete -p clip-negatives""",
    "zsh": """autoload -Uz compinit; compinit -u; source "$1"; _describe() { print -l ${(P)3}; }
        words=(clip-negatives tra); CURRENT=2; _clip_negatives_completion""",
    "fish": """source $argv[1]; complete -C 'clip-negatives tra'""",
}


@pytest.mark.parametrize("shell", COMPLETE)
def test_the_script_completes_a_command(shell: str, tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["completion", shell])
    assert shown.exit_code == 0
    assert shown.stderr == ""
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed")
    script, command = tmp_path / "script", tmp_path / "clip-negatives"
    script.write_text(shown.stdout)
    command.write_text(f"#!{sys.executable}\nfrom clip_negatives.cli import main\nmain()\n")
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    arguments = [str(script)] if shell == "fish" else ["-", str(script)]
    completed = subprocess.run(
        [program, "-c", COMPLETE[shell], *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert "train" in [word.partition(":")[0] for word in completed.stdout.split()]
    assert completed.stderr == ""


def test_help_says_how_to_install() -> None:
    shown = CliRunner().invoke(main, ["completion", "--help"]).output
    assert "clip-negatives completion bash >> ~/.bashrc" in shown
    assert "~/.config/fish/completions/clip-negatives.fish" in shown


def test_an_unknown_shell_is_an_error() -> None:
    shown = CliRunner().invoke(main, ["completion", "tcsh"])
    assert shown.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in shown.stderr
