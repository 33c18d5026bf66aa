"""Name a method: a negative sampler and a loss weighting."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from clip_negatives import registry
from clip_negatives.errors import InputError, UnknownNameError
from clip_negatives.options import parse_spec
from clip_negatives.temperature import check_temperature

BASELINE = "in_batch"
"""What every other method is compared with."""

CONTROL = "random_reduction"
"""Drops as many incorrect pairs as the paper's gate, at random; always there, or a gain could be owed to fewer pairs."""

NAMED = {
    BASELINE: ("in_batch", "uniform"),
    "default": ("cluster_similarity", "weighted_infonce"),
    "paper": ("cluster_similarity", "weighted_infonce:text_beta=0.0,remove=true"),
    CONTROL: ("in_batch", "random_reduction"),
}
"""Methods with a name of their own."""


@dataclass(frozen=True, slots=True)
class Method:
    """Pair a sampler with a weighting.

    Attributes:
        name: as the user wrote it, with the temperature.
        sampler: ``name`` or ``name:key=value,...``.
        weighting: the same.
        temperature: what the temperature is held at; None where it is learned.
    """

    name: str
    sampler: str
    weighting: str
    temperature: float | None = None


def parse_methods(text: str) -> list[Method]:
    """Read methods separated by commas; the baseline and the control are added where they are missing.

    A method is a name of `NAMED`, a sampler (with uniform weighting), a weighting (with in-batch sampling), or
    ``sampler+weighting``; either may have options, ``name:key=value,key=value``. ``@0.1`` after a method holds the temperature
    at that, see `clip_negatives.temperature`.

    Raises:
        UnknownNameError: no plugin has the name.
        OptionError: an option is unknown or of another type.
        InputError: a method is named twice, or a temperature is no number of its range.

    Examples:
        >>> [method.weighting for method in parse_methods("in_batch+weighted_infonce:beta=2,normalize=false")]
        ['uniform', 'weighted_infonce:beta=2,normalize=false', 'random_reduction']
    """
    written = _split(text)
    names = [BASELINE, *(name for name in written if name not in (BASELINE, CONTROL)), CONTROL]
    if len(set(written)) < len(written):
        raise InputError(f"Expected every method once, got {text!r}.")
    return [_method(name) for name in names]


def _split(text: str) -> list[str]:
    """Split at commas, but not at those between the options of one plugin."""
    parts: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        if parts and re.match(r"\w+\s*=", piece):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return parts


def _method(name: str) -> Method:
    spec, at, held = name.rpartition("@")
    if not at:
        return Method(name, *_plugins(name))
    try:
        temperature = float(held)
    except ValueError:
        raise InputError(f"Expected a temperature after @, such as {spec}@0.1, got {name!r}.") from None
    return Method(name, *_plugins(spec), check_temperature(temperature))


def _plugins(name: str) -> tuple[str, str]:
    """Return the specs of sampler and weighting."""
    if name in NAMED:
        return NAMED[name]
    found = registry.default_registry()
    sampler, plus, weighting = name.partition("+")
    if not plus:
        bare = parse_spec(name)[0]
        samplers = {item.name for item in found.items("negative_sampler")}
        weightings = {item.name for item in found.items("loss_weighting")}
        if bare not in samplers | weightings:
            raise UnknownNameError.of("method, sampler or weighting", bare, _all(samplers, weightings))
        sampler, weighting = (name, "uniform") if bare in samplers else ("in_batch", name)
    found.resolve("negative_sampler", sampler)
    found.resolve("loss_weighting", weighting)
    return sampler, weighting


def _all(*names: Iterable[str]) -> set[str]:
    return {*NAMED}.union(*names)
