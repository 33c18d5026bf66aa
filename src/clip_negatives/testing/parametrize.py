"""The checks as cases of a pytest test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from clip_negatives.registry import Kind
from clip_negatives.testing.kit import CHECKS, known_checks
from clip_negatives.testing.subject import Check, NotApplicableError, Subject

if TYPE_CHECKING:
    import pytest


def parametrize_with_checks(
    kind: Kind, *plugins: str | Callable[..., Any], expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Make a test of two arguments, ``plugin`` and ``check``, run each check on each plugin.

    A check that has nothing to look at is skipped; one that is expected to fail is an xfail with its reason, and fails the
    test if it passes.

    Args:
        kind: "clusterer", "negative_sampler" or "loss_weighting".
        plugins: each ``name:key=value,...`` of an installed plugin, or a factory.
        expected_failures: reason by name of a check, for those that the plugins are known not to pass.

    Raises:
        UnknownNameError: there is no such plugin, or an expected failure is of no check.

    Examples:
        >>> @parametrize_with_checks("negative_sampler", "in_batch", "cluster_similarity:image_quantile=0.9")
        ... def test_conforms(plugin, check):
        ...     check(plugin)
    """
    import pytest

    reasons = known_checks(kind, expected_failures)
    subjects = [Subject.of(kind, plugin) for plugin in plugins]
    cases = [
        pytest.param(
            subject,
            _skipping(check),
            id=f"{subject.name}-{check.__name__}",
            marks=[pytest.mark.xfail(reason=reasons[check.__name__], strict=True)] if check.__name__ in reasons else [],
        )
        for subject in subjects
        for check in CHECKS[kind]
    ]
    return pytest.mark.parametrize(("plugin", "check"), cases)


def _skipping(check: Check) -> Check:
    """Return the check so that what it cannot look at is skipped."""
    import pytest

    @functools.wraps(check)
    def skipping(subject: Subject) -> None:
        try:
            check(subject)
        except NotApplicableError as why:
            pytest.skip(str(why))

    return skipping
