"""Guard around the code of plugins."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from clip_negatives.errors import PluginError


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
