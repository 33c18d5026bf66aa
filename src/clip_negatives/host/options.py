"""Options of a plugin: the keyword arguments of its factory, written ``name:key=value,key=value`` on the command line."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from clip_negatives.errors import OptionError, PluginLoadError, UnknownNameError
from clip_negatives.host.option_checks import alternatives

_SCALARS = (bool, int, float, str)
_BOOLEANS = dict.fromkeys(("true", "yes", "1", "on"), True) | dict.fromkeys(("false", "no", "0", "off"), False)


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword argument of a factory."""

    name: str
    type: type  # bool, int, float or str
    optional: bool  # whether ``none`` is allowed
    default: Any
    choices: tuple[Any, ...] = ()  # allowed values, from the annotation ``Literal[...]``; empty if every value is allowed

    @property
    def allowed(self) -> list[str]:
        """Return the type or the allowed values, and ``none`` if it is allowed."""
        return [*(map(str, self.choices) if self.choices else [self.type.__name__]), *(["none"] if self.optional else [])]

    def parse(self, owner: str, value: object) -> Any:
        """Return `value` in the type of the option; text is converted, any other value must have the type already."""
        if self.optional and (value is None or (isinstance(value, str) and value.lower() == "none")):
            return None
        with suppress(ValueError, KeyError):
            typed = self._typed(value)
            if not self.choices or typed in self.choices:
                return typed
        raise OptionError(f"Expected {alternatives(self.allowed)} for option {self.name!r} of {owner!r}, got {value!r}.")

    def _typed(self, value: object) -> Any:
        """Return `value` in the type of the option; a value of another type is a `ValueError` or a `KeyError`."""
        if isinstance(value, str):
            return _BOOLEANS[value.lower()] if self.type is bool else self.type(value)
        accepted = (int, float) if self.type is float else self.type
        if isinstance(value, bool) != (self.type is bool) or not isinstance(value, accepted):
            raise ValueError(value)
        return self.type(value)


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
    try:
        holder = type("_Options", (), {"__annotations__": annotations})
        hints = typing.get_type_hints(holder, globalns=_names_of(factory))
    except NameError as error:
        raise PluginLoadError(f"An annotation of {factory!r} cannot be resolved: {error}.") from None
    return tuple(_option(factory, parameter, hints.get(parameter.name, str)) for parameter in parameters)


def _names_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the names that annotations can use: those of the module of `factory`, and of the modules of its base classes."""
    classes = inspect.getmro(factory) if isinstance(factory, type) else (factory,)
    modules = [sys.modules.get(item.__module__) for item in reversed(classes)]
    return {name: value for module in modules if module for name, value in vars(module).items()}


def _option(factory: Callable[..., Any], parameter: inspect.Parameter, hint: Any) -> Option:
    """Return the option of one parameter; `hint` is its resolved annotation."""
    members = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    declared = [member for member in members if member is not type(None)]
    choices = get_args(declared[0]) if get_origin(declared[0]) is Literal else ()
    kinds = {type(choice) for choice in choices} if choices else declared
    kind = next((scalar for scalar in _SCALARS if all(scalar is item for item in kinds)), None)
    if kind is None or len(declared) != 1 or parameter.default is parameter.empty:
        raise PluginLoadError(
            f"Option {parameter.name!r} of {factory!r} needs a default and one of the types bool, int, float, str, Literal, or "
            f"one of them | None; it is declared as {parameter}."
        )
    return Option(parameter.name, kind, len(members) > 1, parameter.default, choices)


def bind_options(owner: str, options: Sequence[Option], values: Mapping[str, object]) -> dict[str, Any]:
    """Return `values`, each converted to the type of its option."""
    known = {option.name: option for option in options}
    for key in values:
        if key not in known:
            raise OptionError(str(UnknownNameError.of(f"option of {owner!r}", key, known)))
    return {key: known[key].parse(owner, value) for key, value in values.items()}
