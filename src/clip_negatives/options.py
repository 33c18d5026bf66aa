"""Options of a plugin: read from its factory's signature, written ``name:key=value,key=value`` on the command line."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_negatives.errors import OptionError, PluginLoadError, UnknownNameError

_SCALARS = (bool, int, float, str)
_TRUE, _FALSE = {"true", "yes", "1", "on"}, {"false", "no", "0", "off"}


@dataclass(frozen=True, slots=True)
class Option:
    """Describe one keyword argument of a factory.

    Attributes:
        name: key on the command line.
        type: bool, int, float or str.
        optional: whether ``none`` is a value too.
        default: value used when it is not given.
    """

    name: str
    type: type
    optional: bool
    default: Any

    def __str__(self) -> str:
        """Return ``name: type = default``."""
        return f"{self.name}: {self.type.__name__}{' | none' if self.optional else ''} = {self.default}"

    def parse(self, owner: str, value: object) -> Any:
        """Return `value` as the option's type; text is read, other values must fit.

        Raises:
            OptionError: the value is of another type.
        """
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            if self.optional:
                return None
        elif isinstance(value, str):
            read = self._read(value)
            if read is not None:
                return read
        elif isinstance(value, self.type) and not (isinstance(value, bool) and self.type is not bool):
            return value
        elif self.type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        expected = self.type.__name__ + (" or none" if self.optional else "")
        raise OptionError(f"Expected {expected} for option {self.name!r} of {owner!r}, got {value!r}.")

    def _read(self, text: str) -> Any:
        """Return the value that `text` spells, or None where it spells none."""
        if self.type is bool:
            return True if text.lower() in _TRUE else False if text.lower() in _FALSE else None
        try:
            return self.type(text)
        except ValueError:
            return None


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``name:key=value,key=value`` into the name and its options.

    Raises:
        OptionError: an option is not of the form key=value, or is given twice.

    Examples:
        >>> parse_spec("kmeans:n_clusters=8,seed=1")
        ('kmeans', {'n_clusters': '8', 'seed': '1'})
    """
    name, _, rest = spec.partition(":")
    given: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or key in given:
            fault = "the same key twice" if key in given else repr(part)
            raise OptionError(f"Expected options of {name!r} written key=value and separated by commas, got {fault}.")
        given[key] = value
    return name.strip(), given


def options_of(factory: Callable[..., Any], *, skip: int = 0) -> tuple[Option, ...]:
    """Return the options of `factory`, leaving out its first `skip` parameters.

    Raises:
        PluginLoadError: a parameter has no default, or a type other than bool, int, float, str or one of them ``| None``.
    """
    parameters = list(inspect.signature(factory).parameters.values())[skip:]
    hints = _hints(factory, parameters)
    options = []
    for parameter in parameters:
        kind, optional = _scalar(hints.get(parameter.name, str))
        if kind is None or parameter.default is parameter.empty:
            raise PluginLoadError(
                f"Expected option {parameter.name!r} of {factory!r} to have a default and a type among bool, int, float, "
                f"str, or one of them | None; got {parameter}."
            )
        options.append(Option(parameter.name, kind, optional, parameter.default))
    return tuple(options)


def bind_options(owner: str, options: Sequence[Option], given: Mapping[str, object]) -> dict[str, Any]:
    """Return `given` with each value as its option's type.

    Raises:
        OptionError: `owner` has no such option, or a value has another type.
    """
    known = {option.name: option for option in options}
    for key in given:
        if key not in known:
            raise OptionError(str(UnknownNameError.of(f"option of {owner!r}", key, known)))
    return {key: known[key].parse(owner, value) for key, value in given.items()}


def _hints(factory: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
    """Return the annotations of `parameters` alone, resolved: other annotations may be names only type checkers know."""
    written = {item.name: item.annotation for item in parameters if item.annotation is not item.empty}
    module = sys.modules.get(factory.__module__)
    try:
        names = vars(module) if module else {}
        return typing.get_type_hints(type("_Options", (), {"__annotations__": written}), globalns=names)
    except NameError as error:
        raise PluginLoadError(f"The options of {factory!r} have an annotation that cannot be resolved: {error}.") from None


def _scalar(hint: Any) -> tuple[type | None, bool]:
    """Return the scalar type of an annotation and whether None is allowed beside it."""
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        rest = [argument for argument in arguments if argument is not type(None)]
        return (rest[0], True) if len(rest) == 1 and rest[0] in _SCALARS and len(arguments) == 2 else (None, False)
    return (hint, False) if hint in _SCALARS else (None, False)
