"""Runs the checks of a kind, as a function or as cases of a pytest test."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clip_negatives.errors import UnknownNameError
from clip_negatives.host.registry import Kind
from clip_negatives.testing.additions import AdditionChecks
from clip_negatives.testing.clusterers import ClustererChecks
from clip_negatives.testing.subject import Check, ConformanceError, NotApplicableError, Plugin, Subject, checks_of
from clip_negatives.testing.weightings import WeightingChecks

if TYPE_CHECKING:
    import pytest

CHECKS: dict[Kind, tuple[Check, ...]] = {
    "clusterer": checks_of(ClustererChecks),
    "negative_sampler": checks_of(AdditionChecks),
    "loss_weighting": checks_of(WeightingChecks),
}
"""The checks of each kind: functions of a `Subject` whose docstring is the requirement."""

Status = Literal["passed", "failed", "not applicable", "failed as expected", "passed unexpectedly"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one check; `message` says why the plugin did not pass."""

    check: str
    requirement: str
    status: Status
    message: str = ""

    @property
    def needs_change(self) -> bool:
        """Return whether the plugin, or its list of expected failures, needs a change."""
        return self.status in ("failed", "passed unexpectedly")


def outcomes(subject: Subject, expected_failures: Mapping[str, str] | None = None) -> Iterator[Outcome]:
    """Run the checks of the subject's kind one after the other; arguments and errors are those of `check_clusterer`."""
    reasons = _known(subject.kind, expected_failures)
    for check in CHECKS[subject.kind]:
        yield _outcome(check, subject, reasons.get(check.__name__))


def check_clusterer(plugin: Plugin, *, expected_failures: Mapping[str, str] | None = None) -> tuple[Outcome, ...]:
    """Run every check of a clusterer, and return the outcomes; raise an error if an outcome needs a change.

    Args:
        plugin: ``name:key=value,...`` of an installed plugin, or a factory.
        expected_failures: reason for each check that the plugin is known to fail, by the name of the check.

    Raises:
        ConformanceError: checks failed, or passed although they were expected to fail; the message lists all of them.
        UnknownNameError: there is no such plugin, or an expected failure names no check.
    """
    return _all_good(Subject.of("clusterer", plugin), expected_failures)


def check_negative_sampler(plugin: Plugin, *, expected_failures: Mapping[str, str] | None = None) -> tuple[Outcome, ...]:
    """Run every check of a negative sampler; see `check_clusterer`."""
    return _all_good(Subject.of("negative_sampler", plugin), expected_failures)


def check_loss_weighting(plugin: Plugin, *, expected_failures: Mapping[str, str] | None = None) -> tuple[Outcome, ...]:
    """Run every check of a loss weighting; see `check_clusterer`."""
    return _all_good(Subject.of("loss_weighting", plugin), expected_failures)


def parametrize_with_checks(
    kind: Kind, *plugins: Plugin, expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Return a decorator for a test with the arguments ``plugin`` and ``check``: pytest runs each check on each plugin.

    A check that does not apply is skipped. An expected failure is a strict xfail with its reason.
    Arguments and errors are those of `check_clusterer`; kind is "clusterer", "negative_sampler" or "loss_weighting".

    Examples:
        >>> @parametrize_with_checks("negative_sampler", "in_batch", "cluster_similarity:image_quantile=0.9")
        ... def test_conforms(plugin, check):
        ...     check(plugin)
    """
    import pytest

    reasons = _known(kind, expected_failures)
    marks = {name: pytest.mark.xfail(reason=reason, strict=True) for name, reason in reasons.items()}
    cases = [
        pytest.param(subject, check, id=f"{subject.name}-{check.__name__}", marks=marks.get(check.__name__, ()))
        for subject, check in itertools.product([Subject.of(kind, plugin) for plugin in plugins], CHECKS[kind])
    ]
    return pytest.mark.parametrize(("plugin", "check"), cases)


def _known(kind: Kind, expected_failures: Mapping[str, str] | None) -> Mapping[str, str]:
    names = [check.__name__ for check in CHECKS[kind]]
    for name in set(expected_failures or {}) - set(names):
        raise UnknownNameError.of(f"check of a {kind.replace('_', ' ')}", name, names)
    return expected_failures or {}


def _all_good(subject: Subject, expected_failures: Mapping[str, str] | None) -> tuple[Outcome, ...]:
    results = tuple(outcomes(subject, expected_failures))
    faults = [f"{outcome.check} {outcome.status}: {outcome.message}" for outcome in results if outcome.needs_change]
    if faults:
        raise ConformanceError("\n".join([f"{subject.name}: {len(faults)} of {len(results)} checks need a change:", *faults]))
    return results


def _outcome(check: Check, subject: Subject, reason: str | None) -> Outcome:
    status: Status = "passed"
    message = ""
    try:
        check(subject)
    except NotApplicableError as skip:
        status, message = "not applicable", str(skip)
    except Exception as error:  # any error of a plugin is a failure of the check
        status, message = "failed", str(error) if isinstance(error, ConformanceError) else f"{type(error).__name__}: {error}"
    if reason is not None and status == "failed":
        status, message = "failed as expected", reason
    elif reason is not None and status == "passed":
        status, message = "passed unexpectedly", f"remove this check from the expected failures ({reason})"
    return Outcome(check.__name__, inspect.getdoc(check) or "", status, message)
