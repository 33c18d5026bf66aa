"""Errors of this package. Each message says what is wrong and what to do.

The command line prints the message and exits with code 2. Other exceptions end with a traceback, except for Ctrl-C and for a
stdout that cannot be written.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClipNegativesError(Exception):
    """Base class of all errors of this package.

    Attributes:
        rank: rank of the process that reports the error for all processes; None if every process reports its own error.
    """

    rank: int | None = None


class DataError(ClipNegativesError):
    """Training, validation or test data (csv, images, shards) that cannot be used."""


class MissingShardError(DataError):
    """A tar that does not exist or cannot be read."""


class ArtifactError(ClipNegativesError):
    """A file or folder that is missing, damaged, not writable or made from other data, such as clusters or a checkpoint."""


class InputError(ClipNegativesError, ValueError):
    """An argument with a wrong value, shape or dtype."""


class ProcessError(ClipNegativesError):
    """A lost or failed process of a run on several processes."""


class DivergedError(ClipNegativesError):
    """A training run whose model weights became NaN or infinite."""


class UnsupportedError(ClipNegativesError):
    """A trainer, version or training option that this package does not support."""


class MissingPackageError(ClipNegativesError, ImportError):
    """An optional package that is not installed."""

    @classmethod
    def of(cls, extra: str, error: ImportError) -> MissingPackageError:
        """Return the error for an integration that needs the packages of the optional dependency `extra`."""
        return cls(f"The packages of {extra} are missing ({error}). Install them: pip install 'clip-negatives[{extra}]'.")


class PluginError(ClipNegativesError):
    """Base class of the errors that name a plugin."""


class PluginLoadError(PluginError):
    """A plugin that fails to import or has invalid hooks."""


class DuplicateNameError(PluginError):
    """Two plugins, or two factories of one kind, with the same name."""


class OptionError(PluginError):
    """An option that a plugin does not have, or a value of the wrong type."""


class UnknownNameError(PluginError):
    """A name that no plugin registers; the message suggests the most similar known name."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Return the error for `name`, with the `known` names and the closest match."""
        known = sorted(known)
        return cls(f"Unknown {kind}: {name!r}.{did_you_mean(name, known)} Known: {', '.join(known) if known else 'none'}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that suggests the most similar known name, after a space; an empty text if none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
