"""The methods of a comparison: the user's methods, baselines and a control."""

from __future__ import annotations

from collections.abc import Iterable

from clip_negatives.errors import InputError
from clip_negatives.host.method import NO_SAMPLER, Method, split_methods

BASELINE = NO_SAMPLER
"""The method that all methods are compared with."""

CONTROL = "random_reduction"
"""Removes as many incorrect pairs as the paper's method, but at random: a gain over it is not due to fewer pairs."""

METHODS = "default,paper"

QUICK_METHODS = "default,one_cluster+uniform"
"""Batches from one image cluster are known to hurt on the catalogue, so that even a short comparison shows a difference."""

FIXED_TEMPERATURE = 0.1
"""The default temperature of the second baseline, `in_batch` with a fixed temperature.

It was the best of 0.05, 0.07, 0.1 and 0.14 on the mean of four data sets. To choose it on the data themselves takes a run for
each candidate.
"""


def parse_methods(text: str, temperature: float | None = None) -> dict[str, Method]:
    """Read methods separated by commas (see `clip_negatives.Method.parse`), and add baselines and control if missing.

    Args:
        text: the methods.
        temperature: temperature of the second baseline; None adds no second baseline.

    Returns:
        The methods by their text: the baselines first, the control last.

    Raises:
        UnknownNameError: no plugin has the name.
        OptionError: an option is unknown or of another type.
        InputError: a method is named twice, a temperature is not a number within 0.01 .. 1, or a method needs a fixed one.

    Examples:
        >>> list(parse_methods("in_batch+weighted_infonce:beta=2,normalize=false", 0.1))
        ['in_batch', 'in_batch@0.1', 'in_batch+weighted_infonce:beta=2,normalize=false', 'random_reduction']
    """
    named = split_methods(text)
    if len(set(named)) < len(named):
        raise InputError(f"A method is named twice in {text!r}. Name each method once.")
    names = [BASELINE, *(name for name in named if name not in (BASELINE, CONTROL)), CONTROL]
    methods = {name: Method.parse(name) for name in names}
    for name, method in methods.items():
        method.check_fixed_temperature(f"Write {name}@0.1")
    if temperature is None:
        return methods
    fixed = Method(BASELINE, temperature=temperature, weighting=methods[BASELINE].weighting)
    rest = {name: method for name, method in methods.items() if name != BASELINE and method != fixed}
    return {BASELINE: methods[BASELINE], str(fixed): fixed, **rest}


def fixed_baseline(names: Iterable[str]) -> str | None:
    """Return the name of the second baseline among the names of all methods, the first one; None if there is none."""
    return next((name for name in names if name.startswith(f"{BASELINE}@")), None)
