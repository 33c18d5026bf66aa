"""Groups of commands."""

from __future__ import annotations

import click

from clip_negatives.errors import did_you_mean


class Group(click.Group):
    """Group of commands. The error for an unknown command suggests the most similar one."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return name, command and remaining arguments."""
        # click suggests commands from 8.4 on, but none that is imported on use.
        name = arguments[0]
        is_known = name.startswith("-") or self.get_command(context, name) is not None
        if not is_known and not context.resilient_parsing:
            context.fail(f"No such command {name!r}.{did_you_mean(name, self.list_commands(context))}")
        return super().resolve_command(context, arguments)
