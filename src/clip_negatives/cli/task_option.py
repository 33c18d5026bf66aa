"""The option `--task` of commands that independent tasks share."""

from __future__ import annotations

import click

from clip_negatives.cli.output import echo
from clip_negatives.distributed.task import Task

task_option = click.option(
    "--task", metavar="I/N", help="Task I of N, from 1.  [default: that of the Slurm array or of torchrun, or 1/1]"
)


def chosen_task(text: str | None) -> Task:
    """Return the task of the option or of the environment; print a task that a Slurm array sets."""
    if text is not None:
        return Task.parse(text)
    task = Task.of_environment()
    if task.origin and not task.is_of_torchrun:
        echo(f"Task {task}, from {task.origin}", err=True)
    return task
