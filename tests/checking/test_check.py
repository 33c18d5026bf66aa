"""The whole answer: suspect pairs, advice by what is known, decisions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from clip_negatives import ClustersFolder
from clip_negatives.checking import check
from clip_negatives.checking.advice import advice_of, known_methods, methods_for
from clip_negatives.checking.rates import Rate
from clip_negatives.checking.suspects import rows_of, samples_of, suspects_of
from clip_negatives.checking.truth import truth_about, with_groups
from clip_negatives.checking.verdict import verdict_of
from clip_negatives.choosing.choice import Choice, Row
from clip_negatives.dataset.decided import Decisions, suspects_text
from clip_negatives.errors import InputError
from clip_negatives.heads import components
from clip_negatives.host.method import Method


def test_suspects_are_ordered_and_connect_no_samples_twice(ungrouped: ClustersFolder) -> None:
    truth = truth_about(ungrouped)
    listed = suspects_of(truth, Decisions(), 1000)
    scores = [(max(0.0, 1 - 16 / suspect.lift) * suspect.agreement, suspect.agreement) for suspect in listed]
    assert [score for score, _ in scores] == pytest.approx(sorted((score for score, _ in scores), reverse=True))
    rest = [agreement for score, agreement in scores if score == 0]
    assert rest == sorted(rest, reverse=True)
    left, right = (torch.tensor([getattr(suspect, side) for suspect in listed]) for side in ("left", "right"))
    n = ungrouped.clusters.n_samples
    assert len(components(n, left, right).unique()) == n - len(listed)
    assert truth.neighbour_sample is not None
    pairs = truth.neighbour_sample.pairs
    suspicious = pairs.take(pairs.agreement > 0.05)
    all_of_them = components(n, suspicious.left, suspicious.right)
    assert torch.equal(components(n, left, right), all_of_them)


def test_most_suspects_are_of_one_item(grouped: ClustersFolder, ungrouped: ClustersFolder) -> None:
    items = grouped.clusters.groups
    assert items is not None
    listed = suspects_of(truth_about(ungrouped), Decisions(), 20)
    assert sum(bool(items[suspect.left] == items[suspect.right]) for suspect in listed) >= 12


def test_pairs_of_one_group_are_not_suspect(grouped: ClustersFolder) -> None:
    groups = grouped.clusters.groups
    assert groups is not None
    listed = suspects_of(truth_about(grouped), Decisions(), 1000)
    assert listed
    assert all(groups[suspect.left] != groups[suspect.right] for suspect in listed)


def test_decided_pairs_are_never_listed_again(ungrouped: ClustersFolder, tmp_path: Path) -> None:
    first = check(ungrouped, choose=False, suspects=4)
    rows = rows_of(first.suspects, samples_of(ungrouped))
    for row, decision in zip(rows, ("same", "different", "same", "different"), strict=True):
        row["decision"] = decision
    (tmp_path / "suspects.csv").write_text(suspects_text(rows))
    second = check(ungrouped, decided=tmp_path / "suspects.csv", choose=False, suspects=1000)
    decided = {(suspect.left, suspect.right) for suspect in first.suspects}
    assert not decided & {(suspect.left, suspect.right) for suspect in second.suspects}
    groups = second.folder.clusters.groups
    assert groups is not None
    assert [bool(groups[pair.left] == groups[pair.right]) for pair in first.suspects] == [True, False, True, False]
    estimates = [next(rate.share for rate in result.verdict.rates.kinds if rate.is_estimate) for result in (first, second)]
    assert estimates[1] < estimates[0]
    assert ungrouped.clusters.groups is None
    assert second.to_dict()["decided"] == {"same": 2, "different": 2}


def test_groups_are_masked_without_a_choice(grouped: ClustersFolder) -> None:
    result = check(grouped, choose=False)
    assert result.advice.method == "id_mask:by=group@0.1"
    assert result.advice.to_do[-1] == "The number of clusters (K) has no effect on this method."
    assert Method.parse(result.advice.method).requires_only_ids
    assert list(result.answers()) == [
        "Are there false negatives?",
        "Are the features good enough?",
        "What to do?",
        "How sure is that?",
    ]


def test_nothing_to_do_but_the_temperature(ungrouped: ClustersFolder) -> None:
    truth = truth_about(ungrouped)
    verdict = verdict_of(ungrouped, truth)
    few = dataclasses.replace(verdict, rates=dataclasses.replace(verdict.rates, all=Rate("same text", 0.0)))
    advice = advice_of(truth, few, None)
    assert advice.method == "in_batch@0.1"
    assert advice.to_do[0].startswith("Change only the temperature: use in_batch@0.1.")
    assert known_methods(truth, few) == []


def made_up(*rows: tuple[str, float, float], method: str) -> Choice:
    """Return a choice with MRR and upper end of the gain of each method."""
    listed = tuple(Row(name, mrr, mrr, mrr, mrr, (high - 0.05, high - 0.1, high), (0.0, 0.0, 0.0)) for name, mrr, high in rows)
    setting = {"n_queries": 300, "folds": 3}
    return Choice(method, "in_batch@0.07", f"Use {method}.", (), "unseen items (groups)", listed, setting, {}, {})


@pytest.mark.parametrize(
    ("mrr", "high", "method", "expected"),
    [
        (0.5, 0.1, "in_batch@0.07", "multi_positive:by=group@0.1"),  # as good as plain: what is known is used
        (0.3, -0.1, "in_batch@0.07", "id_mask:by=group@0.1"),  # one of the two is worse
        (0.5, 0.1, "gist@0.1", "gist@0.1"),  # another method is significantly better
    ],
)
def test_the_choice_decides(grouped: ClustersFolder, mrr: float, high: float, method: str, expected: str) -> None:
    truth = truth_about(grouped)
    verdict = verdict_of(grouped, truth)
    assert methods_for(truth, verdict) == "menu,id_mask:by=group@0.1,multi_positive:by=group@0.1"
    rows = ("in_batch@0.07", 0.4, 0.0), ("id_mask:by=group@0.1", 0.4, 0.1), ("multi_positive:by=group@0.1", mrr, high)
    rows = *rows, ("gist@0.1", 0.6, 0.2)
    assert advice_of(truth, verdict, made_up(*rows, method=method)).method == expected


def test_without_groups_and_with_bad_plain_the_choice_is_used(ungrouped: ClustersFolder) -> None:
    truth = truth_about(ungrouped)
    choice = made_up(("in_batch@0.07", 0.4, 0.0), method="in_batch@0.07")
    assert advice_of(truth, verdict_of(ungrouped, truth), choice).method == "in_batch@0.07"


def test_a_check_without_a_possible_choice_says_why(ungrouped: ClustersFolder) -> None:
    clusters = dataclasses.replace(ungrouped.clusters, image_features=None, text_features=None)
    result = check(dataclasses.replace(ungrouped, clusters=clusters))
    assert result.choice is None
    assert result.suspects == ()
    assert "No method was chosen" in result.answers()["How sure is that?"][-1]


def test_a_group_that_is_too_large_names_the_option_of_choose(grouped: ClustersFolder) -> None:
    """`check` has no `fold_by`, so advice to use it would not work."""
    large = with_groups(grouped, ["same" if row else "" for row in range(grouped.clusters.n_samples)])
    note = check(large).notes[0]
    assert "has 100 % of the data, too much to hold out. Use fold_by= of clip_negatives.choosing.choose with a column" in note


def test_the_number_of_suspects_is_checked(ungrouped: ClustersFolder) -> None:
    with pytest.raises(InputError, match="suspects= must be at least 1, got 0"):
        check(ungrouped, suspects=0)
