"""Guards around the code of plugins."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_negatives.errors import ClipNegativesError, PluginError


@contextmanager
def no_exit() -> Iterator[None]:
    """Turn a ``sys.exit`` into a `PluginError`: a plugin must not end a training as if it had succeeded."""
    try:
        yield
    except SystemExit as stopped:
        place = traceback.extract_tb(stopped.__traceback__)[-1]
        raise PluginError(
            f"{place.filename}, line {place.lineno}, ended the program with exit code {stopped.code or 0}. Raise an exception "
            "there instead of SystemExit."
        ) from stopped


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Turn an exception of a plugin's code into a `PluginError` that says what stopped, why and in which line.

    Errors of this package and a lack of memory stay as they are.
    """
    try:
        yield
    except Exception as error:
        import torch  # late: the command line's help does not need it

        if isinstance(error, ClipNegativesError | MemoryError | torch.OutOfMemoryError):
            raise
        of_torch = str(Path(torch.__file__).parent)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(of_torch)]
        place, message = frames[-1], " ".join(str(error).split()).rstrip(".")
        raise PluginError(
            f"{what} stopped with {type(error).__name__}: {message} ({place.filename}, line {place.lineno}). Repair the plugin."
        ) from error
