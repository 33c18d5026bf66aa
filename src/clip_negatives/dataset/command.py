"""The output of the command of a ``pipe:``."""

from __future__ import annotations

import io
import subprocess
from typing import IO, Any, cast

PIPE = "pipe:"


class FailedCommandError(Exception):
    """A command that failed; the message says how it ended."""


class CommandError(EOFError):
    """The command of a ``pipe:`` failed after some output, so its tar may be incomplete; the message says how it ended."""


class CommandStream(io.RawIOBase):
    """The output of a running command; see `open_command`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self._output = process, cast("IO[bytes]", process.stdout)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes; FailedCommandError at the end of the output of a command that failed."""
        n_read: int = cast("Any", self._output).readinto(buffer)
        if n_read == 0 and len(buffer) and (code := self._process.wait()):
            ending = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
            raise FailedCommandError(f"its command {ending}")
        return n_read

    def close(self) -> None:
        """End the command if it still runs: nobody reads what else it prints."""
        if not self.closed:
            self._output.close()
            self._process.terminate()  # does nothing after `wait`
            self._process.wait()
        super().close()


def open_command(url: str) -> CommandStream:
    """Run the command of a ``pipe:`` in a shell, as webdataset does, and return its output."""
    process = subprocess.Popen(url.removeprefix(PIPE), shell=True, stdout=subprocess.PIPE)  # noqa: S602  (a user's command)
    return CommandStream(process)
