"""Every error that the package raises on purpose: one sentence a user can act on.

The command line prints the message of any of these and exits with code 2; nothing else is caught there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClipNegativesError(Exception):
    """Stand above every error of this package.

    Attributes:
        rank: of a run on several processes, the one that reports the error to the user; None where each does.
    """

    rank: int | None = None


class DataError(ClipNegativesError):
    """Report training data (csv, images, shards) that cannot be used as given."""


class ArtifactError(ClipNegativesError):
    """Report a clusters folder that is missing, damaged, or does not belong to the data."""


class InputError(ClipNegativesError, ValueError):
    """Report an argument whose value, shape or dtype is not what the function expects."""


class ProcessError(ClipNegativesError):
    """Report a process of a run on several that was lost or failed."""


class DivergedError(ClipNegativesError):
    """Report a training whose weights are no longer numbers."""


class UnsupportedError(ClipNegativesError):
    """Report a trainer, version or training option that this package does not serve."""


class MissingPackageError(ClipNegativesError, ImportError):
    """Report an optional package that is not installed."""

    @classmethod
    def of(cls, extra: str, error: ImportError) -> MissingPackageError:
        """Build the error for a bridge that needs what the optional dependency `extra` installs."""
        return cls(f"Expected the packages of {extra}, got: {error}. Install them: pip install 'clip-negatives[{extra}]'.")


class PluginError(ClipNegativesError):
    """Stand above the errors that name a plugin."""


class PluginLoadError(PluginError):
    """Report a plugin whose module fails to import or whose hooks do not fit."""


class DuplicateNameError(PluginError):
    """Report two plugins, or two factories, that claim one name."""


class OptionError(PluginError):
    """Report an option that a plugin does not have, or a value of the wrong type."""


class UnknownNameError(PluginError):
    """Report a name that no plugin registers; the message offers the nearest one."""

    @classmethod
    def of(cls, what: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Build the error for `name`, listing `known` and the closest match."""
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        listing = ", ".join(known) if known else "none is registered"
        return cls(f"Expected the name of {_article(what)} {what} ({listing}), got {name!r}.{hint}")


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
