"""Each broken plugin fails its check and no other; correct plugins pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from clip_negatives.errors import UnknownNameError
from clip_negatives.host import registry
from clip_negatives.host.registry import KINDS, Kind
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
OURS["negative_sampler"].remove("redrawn_captions")  # needs a file of captions, see tests/plugins/rivals/test_additions.py


@pytest.mark.parametrize(("kind", "check", "plugin"), CASES, ids=[f"{kind}-{check}" for kind, check, _ in CASES])
def test_a_broken_plugin_is_caught_by_its_check_alone(kind: Kind, check: str, plugin: Callable[..., object]) -> None:
    failed = {outcome.check: outcome.message for outcome in outcomes(Subject.of(kind, plugin)) if outcome.needs_change}
    if check == "log_weights_are_valid":  # the loss refuses the terms, so that checks of the loss fail too
        assert "terms.image_table must be within" in failed.pop("pickles")
        failed = {check: failed[check]}
    if check == "anchor_loss_has_one_value_per_anchor":  # the loss refuses this shape, so that checks of the loss fail too
        assert "forward must return the loss of each anchor" in failed.pop("pickles")
        failed = {check: failed[check]}
    assert set(failed) == {check}, failed
    assert ". " in failed[check] or ": " in failed[check]  # the fault and the remedy, or an exception of the plugin


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_has_a_broken_plugin_and_a_sentence(kind: Kind) -> None:
    assert list(MODULES[kind].BROKEN) == [check.__name__ for check in CHECKS[kind]]
    for check in CHECKS[kind]:
        sentence = inspect.getdoc(check)
        assert sentence is not None
        assert "\n\n" not in sentence
        assert sentence.endswith(".")


@pytest.mark.parametrize(("kind", "plugin"), [(kind, plugin) for kind, module in MODULES.items() for plugin in module.SOUND])
def test_sound_plugins_pass(kind: Kind, plugin: Callable[..., object]) -> None:
    assert [outcome for outcome in outcomes(Subject.of(kind, plugin)) if outcome.needs_change] == []


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
    with pytest.raises(ConformanceError, match=r"YieldsTuples: 1 of 30 checks need a change:\nbatches_are_lists.*is a tuple"):
        check_negative_sampler(broken_samplers.YieldsTuples)
    with pytest.raises(ConformanceError, match=r"no_cluster_is_empty failed: 1 clusters have no sample"):
        check_clusterer(broken_clusterers.LeavesOneEmpty)
    with pytest.raises(ConformanceError, match="log_weights_are_valid failed"):
        check_loss_weighting(broken_weightings.WeighsByNan)


def test_an_expected_failure_carries_its_reason() -> None:
    results = check_negative_sampler(
        broken_samplers.YieldsTuples, expected_failures={"batches_are_lists_of_b_indices": "tuples are shorter"}
    )
    assert [(outcome.status, outcome.message) for outcome in results if outcome.check == "batches_are_lists_of_b_indices"] == [
        ("failed as expected", "tuples are shorter")
    ]


def test_an_expected_failure_that_passes_is_an_error() -> None:
    with pytest.raises(ConformanceError, match=r"pickles passed unexpectedly: .*expected failures \(it cannot\)"):
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
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-k", "pickles or extra_texts or length_is")
    result.assert_outcomes(passed=1, failed=1, skipped=2)
    result.stdout.fnmatch_lines(["*XPASS(strict)*it does*"])
