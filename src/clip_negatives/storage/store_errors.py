"""Errors of object stores and other file systems of fsspec, as one sentence."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from clip_negatives.errors import ArtifactError, ClipNegativesError


@contextmanager
def store_errors(url: str, *passed: type[Exception]) -> Iterator[None]:
    """Turn the errors of file systems, except for those in `passed`, into an ArtifactError."""
    try:
        yield
    except Exception as error:  # each file system has its own errors
        if isinstance(error, (ClipNegativesError, *passed)):
            raise
        reason = textwrap.shorten(getattr(error, "strerror", None) or str(error), 200) or type(error).__name__
        fault = f"{url} cannot be read or written: {reason.rstrip('.')}"
        raise ArtifactError(f"{fault}. Check the address and the permissions, and run the command again.") from error
