"""Each check finds the plugin that is broken in its way, and nothing else does."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from clip_negatives import registry
from clip_negatives.errors import UnknownNameError
from clip_negatives.registry import KINDS, Kind
from clip_negatives.testing import (
    CHECKS,
    ConformanceError,
    Subject,
    check_clusterer,
    check_loss_weighting,
    check_negative_sampler,
    outcomes,
    parametrize_with_checks,
)

from . import broken_clusterers, broken_samplers, broken_weightings

MODULES = {"clusterer": broken_clusterers, "negative_sampler": broken_samplers, "loss_weighting": broken_weightings}
CASES = [(kind, check, plugin) for kind, module in MODULES.items() for check, plugin in module.BROKEN.items()]
OURS = {
    kind: [item.name for item in registry.default_registry().items(kind) if item.distribution == "clip-negatives"]
    for kind in KINDS
}


@pytest.mark.parametrize(("kind", "check", "plugin"), CASES, ids=[f"{kind}-{check}" for kind, check, _ in CASES])
def test_a_broken_plugin_is_caught_by_its_check_alone(kind: Kind, check: str, plugin: Callable[..., object]) -> None:
    failed = {one.check: one.message for one in outcomes(Subject.of(kind, plugin)) if one.bad}
    assert set(failed) == {check}, failed
    assert failed[check].startswith("Expected ") or ": " in failed[check]


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_has_a_broken_plugin_and_a_sentence(kind: Kind) -> None:
    assert list(MODULES[kind].BROKEN) == [check.__name__ for check in CHECKS[kind]]
    for check in CHECKS[kind]:
        sentence = inspect.getdoc(check)
        assert sentence is not None
        assert "\n\n" not in sentence
        assert sentence.endswith(".")


@pytest.mark.parametrize(("kind", "plugin"), [(kind, one) for kind, module in MODULES.items() for one in module.SOUND])
def test_sound_plugins_pass(kind: Kind, plugin: Callable[..., object]) -> None:
    assert [one for one in outcomes(Subject.of(kind, plugin)) if one.bad] == []


@parametrize_with_checks("clusterer", *OURS["clusterer"], "kmeans:n_clusters=5,spherical=false")
def test_our_clusterers(plugin: Subject, check: Callable[[Subject], None]) -> None:
    check(plugin)


@parametrize_with_checks("negative_sampler", *OURS["negative_sampler"])
def test_our_samplers(plugin: Subject, check: Callable[[Subject], None]) -> None:
    check(plugin)


@parametrize_with_checks("loss_weighting", *OURS["loss_weighting"])
def test_our_weightings(plugin: Subject, check: Callable[[Subject], None]) -> None:
    check(plugin)


def test_failures_are_listed_together() -> None:
    with pytest.raises(ConformanceError, match=r"Of 24 checks, YieldsTuples does not hold to 1:\nbatches_are_lists.*got tuple"):
        check_negative_sampler(broken_samplers.YieldsTuples)
    with pytest.raises(ConformanceError, match=r"no_cluster_is_empty failed: .* got 1 clusters without"):
        check_clusterer(broken_clusterers.LeavesOneEmpty)
    with pytest.raises(ConformanceError, match="log_weights_are_numbers failed"):
        check_loss_weighting(broken_weightings.WeighsByNan)


def test_an_expected_failure_carries_its_reason() -> None:
    found = check_negative_sampler(
        broken_samplers.YieldsTuples, expected_failures={"batches_are_lists_of_b_indices": "tuples are shorter"}
    )
    assert [(one.status, one.message) for one in found if one.check == "batches_are_lists_of_b_indices"] == [
        ("failed as expected", "tuples are shorter")
    ]


def test_an_expected_failure_that_passes_is_told() -> None:
    with pytest.raises(ConformanceError, match="pickles passed unexpectedly: expected to fail: it cannot"):
        check_negative_sampler(broken_samplers.Sound, expected_failures={"pickles": "it cannot"})


def test_an_expected_failure_of_no_check() -> None:
    with pytest.raises(UnknownNameError, match=r"'pickle'.*pickles"):
        check_clusterer("kmeans", expected_failures={"pickle": "no"})
    with pytest.raises(UnknownNameError, match="'pickle'"):
        parametrize_with_checks("clusterer", "kmeans", expected_failures={"pickle": "no"})


def test_names_of_no_plugin() -> None:
    with pytest.raises(UnknownNameError, match="kmeans"):
        check_clusterer("kmean")


def test_in_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from clip_negatives.testing import parametrize_with_checks

        @parametrize_with_checks("negative_sampler", "in_batch", expected_failures={"pickles": "it does"})
        def test_conforms(plugin, check):
            check(plugin)
        """
    )
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-k", "pickles or extra_texts or length")
    result.assert_outcomes(passed=1, failed=1, skipped=2)
    result.stdout.fnmatch_lines(["*XPASS(strict)*it does*"])
