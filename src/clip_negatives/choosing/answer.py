"""Choose a candidate by its gain, and describe the choice in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.choosing.choice import Choice, Row, plugins_of
from clip_negatives.choosing.intervals import Scores, gains
from clip_negatives.choosing.menu import BASELINE, Candidate, Menu
from clip_negatives.choosing.query_ranks import QueryRanks, RanksByCandidate, mean_mrr
from clip_negatives.metrics.statistics import Gain

HEADS_WARNING = (
    "These figures are of linear heads on frozen features, not of a fully trained model. In our study, gains of heads and of "
    "trained models correlate at Rank@10 (0.53), but not at Rank@1 (-0.25). Confirm the choice with clip-negatives compare."
)


def answer(
    menu: Menu,
    ranks: RanksByCandidate,
    setting: Mapping[str, Any],
    held_out: str,
    items: Sequence[Tensor],
    clusters_record: Mapping[str, Any],
) -> Choice:
    """Return the choice.

    Args:
        menu: the candidates.
        ranks: the ranks of all candidates.
        setting: see `Choice.setting`.
        held_out: see `Choice.held_out`.
        items: item of each query of each fold.
        clusters_record: see `Choice.clusters`.
    """
    candidates = menu.candidates
    in_batch = [candidate for candidate in candidates if candidate.is_in_batch and not candidate.is_control]
    reference = max(in_batch, key=lambda candidate: mean_mrr(ranks[candidate]))
    baseline = next(candidate for candidate in candidates if str(candidate) == BASELINE)
    gains_over = {
        other: dict(zip(candidates, _gains(ranks, candidates, other, items), strict=True)) for other in (reference, baseline)
    }
    controls = [candidate for candidate in candidates if candidate.is_control]
    methods = [candidate for candidate in candidates if not candidate.is_control]
    better = [candidate for candidate in methods if gains_over[reference][candidate].sign > 0]
    chosen = max(better or methods, key=lambda candidate: mean_mrr(ranks[candidate]))
    rows = tuple(
        _row(candidate, ranks[candidate], gains_over[reference][candidate], gains_over[baseline][candidate])
        for candidate in candidates
    )
    return Choice(
        method=str(chosen),
        reference=str(reference),
        sentence=_sentence(chosen, reference, gains_over[reference][chosen], gains_over[baseline][chosen]),
        warnings=(*_left_out(menu), *_limits(chosen, controls, gains_over[reference]), HEADS_WARNING),
        held_out=held_out,
        rows=tuple(sorted(rows, key=lambda row: -row.mrr)),
        setting=dict(setting),
        clusters=dict(clusters_record),
        plugins=plugins_of(chosen.method),
    )


def _gains(
    ranks: RanksByCandidate, candidates: Sequence[Candidate], reference: Candidate, items: Sequence[Tensor]
) -> list[Gain]:
    scores = {candidate: _scores(ranks, candidate) for candidate in {*candidates, reference}}
    by_candidate = [scores[candidate] for candidate in candidates]
    return gains(by_candidate, scores[reference], items, comparisons=len(candidates) - 1)


def _scores(ranks: RanksByCandidate, candidate: Candidate) -> Scores:
    return [[1 / run.text_to_image.double() for run in by_seed] for by_seed in ranks[candidate]]


def _row(candidate: Candidate, ranks: Sequence[Sequence[QueryRanks]], gain: Gain, over_baseline: Gain) -> Row:
    runs = [run for by_seed in ranks for run in by_seed]

    def mean(values: Sequence[Tensor]) -> float:
        return float(torch.stack([value.double().mean() for value in values]).mean())

    return Row(
        name=str(candidate),
        mrr=mean([1 / run.text_to_image for run in runs]),
        rank_1=mean([run.text_to_image <= 1 for run in runs]),
        rank_10=mean([run.text_to_image <= 10 for run in runs]),
        image_mrr=mean([1 / run.image_to_text for run in runs]),
        gain=_ends(gain),
        gain_over_baseline=_ends(over_baseline),
        is_control=candidate.is_control,
    )


def _ends(gain: Gain) -> tuple[float, float, float]:
    """Return a gain and the ends of its interval."""
    if gain.low is None or gain.high is None:
        raise ValueError("a gain over folds has an interval")
    return gain.estimate, gain.low, gain.high


def _sentence(chosen: Candidate, reference: Candidate, gain: Gain, over_baseline: Gain) -> str:
    best = f"{reference}, in-batch negatives at their best temperature"
    learned = "" if str(reference) == BASELINE else f"{over_baseline} over {BASELINE} as it is"
    if gain.sign > 0:
        return f"Use {chosen}: {', '.join(filter(None, [f'MRR {gain} over {best}', learned]))}."
    if chosen != reference:
        highest = f"Use {chosen}, which has the highest MRR: {', '.join(filter(None, [f'{gain} over {reference}', learned]))}."
        return f"Nothing beats {best}, significantly. {highest}"
    return f"Nothing beats {best}, on these data. Use {chosen}{f': MRR {learned}' if learned else ''}."


def _left_out(menu: Menu) -> list[str]:
    if not menu.left_out:
        return []
    return [f"Left out, because their plugins are not installed: {', '.join(menu.left_out)}."]


def _limits(chosen: Candidate, controls: Sequence[Candidate], gains_over: Mapping[Candidate, Gain]) -> list[str]:
    """Return sentences about the gain that would have been significant, and about controls that gain more than any method."""
    sentences = []
    if gains_over[chosen].sign <= 0:
        ends = [_ends(gain) for candidate, gain in gains_over.items() if not candidate.is_control]
        half = max(high - estimate for estimate, _, high in ends)
        sentences.append(
            f"A gain above {100 * half:.0f} % would have been significant for every method. More {argument('seeds', 'seeds')} "
            "and more data lower this limit."
        )
    control = max(controls, key=lambda candidate: gains_over[candidate].estimate, default=None)
    if control is not None and gains_over[control].sign > 0 and gains_over[control].estimate > gains_over[chosen].estimate:
        sentences.append(
            f"Feature dropout {control.dropout:g} alone gains {gains_over[control]}, more than {chosen}. Regularisation may "
            "help more than the choice of negatives."
        )
    return sentences
