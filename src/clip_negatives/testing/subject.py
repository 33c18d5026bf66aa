"""What is checked: a plugin of a kind, made afresh as often as a check needs it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from clip_negatives import registry
from clip_negatives.errors import ClipNegativesError
from clip_negatives.registry import Kind


class ConformanceError(AssertionError):
    """Say what a plugin does that its kind must not."""


class NotApplicableError(Exception):
    """Say why a check has nothing to look at in a plugin."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Make a plugin afresh.

    Attributes:
        kind: "clusterer", "negative_sampler" or "loss_weighting".
        name: what it is called in messages.
        factory: what builds it.
        options: keyword arguments of the factory.
    """

    kind: Kind
    name: str
    factory: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: Kind, plugin: str | Callable[..., Any]) -> Subject:
        """Return the subject for ``name:key=value,...`` of an installed plugin, or for a factory that is not registered.

        Raises:
            UnknownNameError: no plugin registers the name.
            OptionError: it has no such option, or the value has another type.
        """
        if isinstance(plugin, str):
            item, options = registry.default_registry().resolve(kind, plugin)
            return cls(kind, plugin, item.factory, options)
        return cls(kind, getattr(plugin, "__name__", repr(plugin)), plugin)

    def create(self, *context: Any) -> Any:
        """Build it; `context` goes before the options."""
        return self.factory(*context, **self.options)

    def says(self, attribute: str, default: bool) -> bool:
        """Return an attribute of the factory that tells what it needs."""
        return bool(getattr(self.factory, attribute, default))


Check = Callable[[Subject], None]
"""Raises `ConformanceError` where a subject does not hold to what the check's docstring says."""


def expect(holds: bool, otherwise: str) -> None:
    """Raise `ConformanceError` with what was expected and found, unless it holds."""
    if not holds:
        raise ConformanceError(otherwise)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Expect an error of this package inside, which users are shown as a sentence."""
    try:
        yield
    except ClipNegativesError as error:
        expect(bool(str(error).strip()), f"Expected an error with a sentence for {what}, got an empty {type(error).__name__}.")
    except Exception as error:
        raise ConformanceError(
            f"Expected a clip_negatives.errors.ClipNegativesError for {what}, got {type(error).__name__}: {error}"
        ) from error
    else:
        raise ConformanceError(f"Expected an error for {what}, got none.")


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Expect that nothing inside draws from the global generators of torch, NumPy and Python."""
    before = _global_states()
    yield
    drawn = [name for name, state in _global_states().items() if state != before[name]]
    names = " and ".join(drawn)
    expect(not drawn, f"Expected randomness from the given seed or generator, got draws from the global one of {names}.")


def _global_states() -> dict[str, Any]:
    """Return what tells whether a global generator was drawn from."""
    numpy: Any = np.random.get_state()  # noqa: NPY002  (the global one is what is looked at)
    return {"torch": torch.get_rng_state().tolist(), "NumPy": (numpy[1].tolist(), *numpy[2:]), "Python": random.getstate()}
