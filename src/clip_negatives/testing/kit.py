"""Run the checks of a kind and tell their outcomes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clip_negatives.errors import UnknownNameError
from clip_negatives.registry import Kind
from clip_negatives.testing import clusterers, samplers, weightings
from clip_negatives.testing.subject import Check, ConformanceError, NotApplicableError, Subject

CHECKS: dict[Kind, tuple[Check, ...]] = {
    "clusterer": clusterers.CHECKS,
    "negative_sampler": samplers.CHECKS,
    "loss_weighting": weightings.CHECKS,
}
"""The checks of each kind: plain functions of a `Subject`, whose docstring says what must hold."""

Status = Literal["passed", "failed", "not applicable", "failed as expected", "passed unexpectedly"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tell how one check ended.

    Attributes:
        check: its name.
        says: what must hold.
        status: "passed", "failed", "not applicable", "failed as expected" or "passed unexpectedly".
        message: why, where it did not pass.
    """

    check: str
    says: str
    status: Status
    message: str = ""

    @property
    def bad(self) -> bool:
        """Return whether the plugin, or what is said of it, is to be mended."""
        return self.status in ("failed", "passed unexpectedly")


def outcomes(subject: Subject, expected_failures: Mapping[str, str] | None = None) -> Iterator[Outcome]:
    """Run the checks of the subject's kind one after the other.

    Args:
        subject: what to check.
        expected_failures: reason by name of a check, for those that it is known not to pass.

    Raises:
        UnknownNameError: an expected failure is of no check.
    """
    reasons = known_checks(subject.kind, expected_failures)
    for check in CHECKS[subject.kind]:
        yield _outcome(check, subject, reasons.get(check.__name__))


def known_checks(kind: Kind, expected_failures: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the expected failures, once each is of a check that there is.

    Raises:
        UnknownNameError: one is not.
    """
    names = [check.__name__ for check in CHECKS[kind]]
    for name in expected_failures or {}:
        if name not in names:
            raise UnknownNameError.of(f"check of a {kind.replace('_', ' ')}", name, names)
    return expected_failures or {}


def check_clusterer(
    plugin: str | Callable[..., Any], *, expected_failures: Mapping[str, str] | None = None
) -> tuple[Outcome, ...]:
    """Run every check of a clusterer.

    Args:
        plugin: ``name:key=value,...`` of an installed plugin, or a factory.
        expected_failures: reason by name of a check, for those that it is known not to pass.

    Returns:
        The outcomes, where none is bad.

    Raises:
        ConformanceError: a check failed, or passed that was expected to fail; the message lists all of them.
        UnknownNameError: there is no such plugin, or an expected failure is of no check.
    """
    return _all_well(Subject.of("clusterer", plugin), expected_failures)


def check_negative_sampler(
    plugin: str | Callable[..., Any], *, expected_failures: Mapping[str, str] | None = None
) -> tuple[Outcome, ...]:
    """Run every check of a negative sampler; see `check_clusterer`."""
    return _all_well(Subject.of("negative_sampler", plugin), expected_failures)


def check_loss_weighting(
    plugin: str | Callable[..., Any], *, expected_failures: Mapping[str, str] | None = None
) -> tuple[Outcome, ...]:
    """Run every check of a loss weighting; see `check_clusterer`."""
    return _all_well(Subject.of("loss_weighting", plugin), expected_failures)


def _all_well(subject: Subject, expected_failures: Mapping[str, str] | None) -> tuple[Outcome, ...]:
    found = tuple(outcomes(subject, expected_failures))
    bad = [f"{one.check} {one.status}: {one.message}" for one in found if one.bad]
    if bad:
        raise ConformanceError(f"Of {len(found)} checks, {subject.name} does not hold to {len(bad)}:\n" + "\n".join(bad))
    return found


def _outcome(check: Check, subject: Subject, reason: str | None) -> Outcome:
    told = check.__name__, inspect.getdoc(check) or ""
    try:
        check(subject)
    except NotApplicableError as why:
        return Outcome(*told, "not applicable", str(why))
    except Exception as error:  # A plugin is foreign code: whatever it raises is what the check found.
        message = str(error) if isinstance(error, ConformanceError) else f"{type(error).__name__}: {error}"
        return Outcome(*told, "failed", message) if reason is None else Outcome(*told, "failed as expected", reason)
    return Outcome(*told, "passed") if reason is None else Outcome(*told, "passed unexpectedly", f"expected to fail: {reason}")
