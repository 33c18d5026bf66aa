"""Options of a plugin: the keyword arguments of its factory, written ``name:key=value,key=value`` on the command line."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from clip_negatives.errors import OptionError, PluginLoadError, UnknownNameError

_SCALARS = (bool, int, float, str)
_BOOLEANS = dict.fromkeys(("true", "yes", "1", "on"), True) | dict.fromkeys(("false", "no", "0", "off"), False)


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword argument of a factory; `str` gives ``name: type = default``."""

    name: str
    type: type  # bool, int, float or str
    optional: bool  # whether ``none`` is allowed
    default: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.type.__name__}{' | none' if self.optional else ''} = {self.default}"

    def parse(self, owner: str, value: object) -> Any:
        """Return `value` in the type of the option; text is converted, any other value must have the type already."""
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            if self.optional:
                return None
        elif isinstance(value, str):
            with suppress(ValueError, KeyError):
                return _BOOLEANS[value.lower()] if self.type is bool else self.type(value)
        elif isinstance(value, bool) == (self.type is bool):
            if isinstance(value, self.type):
                return value
            if self.type is float and isinstance(value, int):
                return float(value)
        expected = self.type.__name__ + (" or none" if self.optional else "")
        raise OptionError(f"Expected {expected} for option {self.name!r} of {owner!r}, got {value!r}.")


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``name:key=value,key=value`` into the name and its options."""
    if not isinstance(spec, str):
        raise OptionError(f"Expected the text NAME or NAME:key=value,... of a plugin, got {spec!r}.")
    name, _, rest = spec.partition(":")
    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key:
            raise OptionError(f"Write the options of {name!r} as key=value, separated by commas, not {part!r}.")
        if key in values:
            raise OptionError(f"Option {key!r} of {name!r} is given twice. Write key=value once for each option.")
        values[key] = value
    return name.strip(), values


def options_of(factory: Callable[..., Any], *, skip: int = 0) -> tuple[Option, ...]:
    """Return the options of `factory`, without its first `skip` parameters."""
    parameters = list(inspect.signature(factory).parameters.values())[skip:]
    # Do not resolve annotations of skipped parameters: they may use names that only type checkers know.
    annotations = {item.name: item.annotation for item in parameters if item.annotation is not item.empty}
    module = sys.modules.get(factory.__module__)
    try:
        holder = type("_Options", (), {"__annotations__": annotations})
        hints = typing.get_type_hints(holder, globalns=vars(module) if module else {})
    except NameError as error:
        raise PluginLoadError(f"An annotation of {factory!r} cannot be resolved: {error}.") from None
    options = []
    for parameter in parameters:
        hint = hints.get(parameter.name, str)
        kind = next((scalar for scalar in _SCALARS if hint in (scalar, scalar | None)), None)
        if kind is None or parameter.default is parameter.empty:
            raise PluginLoadError(
                f"Option {parameter.name!r} of {factory!r} needs a default and one of the types bool, int, float, str, or one "
                f"of them | None; it is declared as {parameter}."
            )
        options.append(Option(parameter.name, kind, hint != kind, parameter.default))
    return tuple(options)


def bind_options(owner: str, options: Sequence[Option], values: Mapping[str, object]) -> dict[str, Any]:
    """Return `values`, each converted to the type of its option."""
    known = {option.name: option for option in options}
    for key in values:
        if key not in known:
            raise OptionError(str(UnknownNameError.of(f"option of {owner!r}", key, known)))
    return {key: known[key].parse(owner, value) for key, value in values.items()}
