"""The plugin under test, and the assertions that checks use."""

from __future__ import annotations

import functools
import pickle
import random
import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_negatives.errors import ClipNegativesError
from clip_negatives.host import registry
from clip_negatives.host.registry import Kind
from clip_negatives.interfaces import Clusters
from clip_negatives.testing.blobs import make_blobs

Plugin = str | Callable[..., Any]  # `name:key=value,...` of an installed plugin, or a factory


class ConformanceError(AssertionError):
    """A plugin fails a check; the message says what is wrong and what to do."""


class NotApplicableError(unittest.SkipTest):
    """A check does not apply to a plugin; the message says why. pytest then skips the test."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Plugin under test; a check can build it several times. `name` is for messages, `options` go to `factory`."""

    kind: Kind
    name: str
    factory: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: Kind, plugin: Plugin) -> Subject:
        """Return the subject for ``name:key=value,...`` of an installed plugin, or for a factory that is not registered."""
        if isinstance(plugin, str):
            item, options = registry.default_registry().resolve(kind, plugin)
            return cls(kind, plugin, item.factory, options)
        return cls(kind, getattr(plugin, "__name__", repr(plugin)), plugin)

    def create(self, *context: Any) -> Any:
        """Build the plugin; `context` goes before the options."""
        return self.factory(*context, **self.options)


Check = Callable[[Subject], None]  # raises `ConformanceError` if a plugin does not meet the requirement in its docstring


@dataclass
class Checks:
    """Checks of the plugins of one kind: every public method, with the requirement as its docstring."""

    plugin: Subject

    def _instance(self) -> Any:
        """Return the plugin, built for the data of the checks."""
        return self.plugin.create()

    def _use(self, instance: Any) -> Any:
        """Use a plugin on the data of the checks, and return a result that ``==`` can compare."""
        raise NotImplementedError

    def global_generators_are_untouched(self) -> None:
        """The plugin draws nothing from the global random generators of torch, NumPy and Python."""
        before = _global_states()
        self._use(self._instance())
        changed = " and ".join(name for name, state in _global_states().items() if state != before[name])
        expect(not changed, f"The plugin draws from the global generator of {changed}. Use the given generator or seed.")

    def pickles(self) -> None:
        """The plugin can be pickled (worker processes need this), and the copy gives the same result."""
        instance = self._instance()
        copy = pickle.loads(pickle.dumps(instance))  # noqa: S301  (our own)
        same = self._use(copy) == self._use(instance)
        expect(same, "A pickled copy gives another result. Keep all options and all state in attributes that pickle.")


def checks_of(group: type[Checks]) -> tuple[Check, ...]:
    """Return the checks of a class as functions of the plugin, in order."""

    def check(method: Callable[[Checks], None]) -> Check:
        return functools.wraps(method)(lambda plugin: method(group(plugin)))

    names = dict.fromkeys(name for base in reversed(group.__mro__) for name in vars(base) if name[0] != "_")
    return tuple(check(getattr(group, name)) for name in names)


def expect(holds: bool, message: str) -> None:
    """Raise `ConformanceError` with the message unless `holds`."""
    if not holds:
        raise ConformanceError(message)


def expect_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], below: int | None = None) -> None:
    """Check dtype and shape, and that all values are in 0 .. `below` - 1."""
    fits = tensor.dtype == dtype and tensor.shape == shape
    expect(fits, f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}. Return {dtype} of shape {shape}.")
    if below is not None:
        low, high = int(tensor.min()), int(tensor.max())
        expect(0 <= low <= high < below, f"{name} is within {low} .. {high}. Return numbers within 0 .. {below - 1}.")


@contextmanager
def may_reject(case: str) -> Iterator[None]:
    """Let the plugin reject a case with an error of this package; the rest of the block is then skipped."""
    try:
        yield
    except ConformanceError:
        raise
    except ClipNegativesError as error:
        expect(bool(str(error).strip()), f"The {type(error).__name__} for {case} is empty. Say what is wrong and what to do.")
    except Exception as error:
        remedy = "Handle the case, or raise an error of clip_negatives.errors, such as InputError, that says what to do."
        raise ConformanceError(f"With {case}, the plugin stops with {error!r}. {remedy}") from error


@contextmanager
def must_reject(case: str) -> Iterator[None]:
    """Require that the plugin rejects a case with an error of this package, whose message users see."""
    with may_reject(case):
        yield
        raise ConformanceError(f"The plugin accepts {case}. Raise an error of clip_negatives.errors, such as InputError.")


def _global_states() -> dict[str, Any]:
    numpy: Any = np.random.get_state()  # noqa: NPY002  (this compares the global state)
    return {"torch": torch.get_rng_state().tolist(), "NumPy": (numpy[1].tolist(), *numpy[2:]), "Python": random.getstate()}


@contextmanager
def unmodified_clusters(n_samples: int) -> Iterator[Clusters]:
    """Yield clusters, and require that the block does not write to them."""
    clusters = make_blobs(n_samples)
    yield clusters
    try:
        torch.testing.assert_close(asdict(clusters), asdict(make_blobs(n_samples)), rtol=0, atol=0)
    except AssertionError as difference:
        raise ConformanceError(f"The plugin changes the clusters in place. Change a copy instead. {difference}") from None
