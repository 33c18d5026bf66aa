"""The methods of a comparison: the user's methods, a baseline and a control."""

from __future__ import annotations

from clip_negatives.errors import InputError
from clip_negatives.host.method import NO_SAMPLER, Method, split_methods

BASELINE = NO_SAMPLER
"""The method that all methods are compared with."""

CONTROL = "random_reduction"
"""Removes as many incorrect pairs as the paper's method, but at random: a gain over it is not due to fewer pairs."""


def parse_methods(text: str) -> dict[str, Method]:
    """Read methods separated by commas (see `clip_negatives.Method.parse`), and add baseline and control if missing.

    Returns:
        The methods by their text: the baseline first, the control last.

    Raises:
        UnknownNameError: no plugin has the name.
        OptionError: an option is unknown or of another type.
        InputError: a method is named twice, a temperature is not a number within 0.01 .. 1, or a method needs a fixed one.

    Examples:
        >>> list(parse_methods("in_batch+weighted_infonce:beta=2,normalize=false"))
        ['in_batch', 'in_batch+weighted_infonce:beta=2,normalize=false', 'random_reduction']
    """
    named = split_methods(text)
    if len(set(named)) < len(named):
        raise InputError(f"A method is named twice in {text!r}. Name each method once.")
    names = [BASELINE, *(name for name in named if name not in (BASELINE, CONTROL)), CONTROL]
    methods = {name: Method.parse(name) for name in names}
    for name, method in methods.items():
        method.check_fixed_temperature(f"Write {name}@0.1")
    return methods
