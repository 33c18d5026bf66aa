"""Checks of option values, with the same error messages for all plugins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import ge, gt, le, lt

from clip_negatives.errors import InputError

Number = float | None


def alternatives(words: Sequence[str]) -> str:
    """Return words as a list that ends with "or".

    Examples:
        >>> alternatives(["image", "text", "both"])
        'image, text or both'
    """
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Check that an option is one of `choices`; the `InputError` lists them."""
    if value not in choices:
        raise InputError(f"{option} must be {alternatives(choices)}, got {value!r}.")


def check_number(
    option: str, value: Number, *, at_least: Number = None, above: Number = None, at_most: Number = None, below: Number = None
) -> None:
    """Check that an option is None or finite and within its limits; the `InputError` names them.

    Examples:
        >>> check_number("rate", 0.5, at_least=0, below=1)
        >>> check_number("rate", 1.0, at_least=0, below=1)
        Traceback (most recent call last):
        ...
        clip_negatives.errors.InputError: rate must be at least 0 and below 1, got 1.0.
    """
    if value is None:
        return
    if not math.isfinite(value):
        raise InputError(f"{option} must be finite, got {value}.")
    bounds = {"at least": (at_least, ge), "above": (above, gt), "at most": (at_most, le), "below": (below, lt)}
    limits = {f"{words} {bound}": holds(value, bound) for words, (bound, holds) in bounds.items() if bound is not None}
    if not all(limits.values()):
        raise InputError(f"{option} must be {' and '.join(limits)}, got {value}.")
