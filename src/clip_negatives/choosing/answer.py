"""The answer: which candidate to use, how sure that is, and what it does not tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clip_negatives.choosing.choice import Choice, Row, plugins_of
from clip_negatives.choosing.intervals import Scores, gains
from clip_negatives.choosing.menu import BASELINE, Candidate, Menu
from clip_negatives.choosing.outcome import Outcomes, mean_mrr
from clip_negatives.choosing.question import Question
from clip_negatives.metrics.statistics import Gain

HEADS_WARNING = (
    "These figures are of linear heads on frozen features, not of a fully trained model. In our study, gains of heads and of "
    "trained models correlate at Rank@10 (0.53), but not at Rank@1 (-0.25). Confirm the choice with clip-negatives compare."
)


def answer(
    menu: Menu,
    outcomes: Outcomes,
    setting: Mapping[str, Any],
    question: Question,
    items: Sequence[Tensor],
    clusters_record: Mapping[str, Any],
) -> Choice:
    """Return the choice.

    Args:
        menu: the candidates.
        outcomes: the outcomes of all candidates.
        setting: see `Choice.setting`.
        question: what the folds asked.
        items: item of each query of each fold.
        clusters_record: see `Choice.clusters`.
    """
    candidates = menu.candidates
    in_batch = [candidate for candidate in candidates if candidate.is_in_batch and not candidate.is_control]
    reference = max(in_batch, key=lambda candidate: mean_mrr(outcomes[candidate]))
    baseline = next(candidate for candidate in candidates if str(candidate) == BASELINE)
    over = {
        other: dict(zip(candidates, _gains(outcomes, candidates, other, items), strict=True)) for other in (reference, baseline)
    }
    controls = [candidate for candidate in candidates if candidate.is_control]
    methods = [candidate for candidate in candidates if not candidate.is_control]
    better = [candidate for candidate in methods if over[reference][candidate].sign > 0]
    chosen = max(better or methods, key=lambda candidate: mean_mrr(outcomes[candidate]))
    rows = tuple(_row(candidate, outcomes, over[reference][candidate], over[baseline][candidate]) for candidate in candidates)
    return Choice(
        method=str(chosen),
        reference=str(reference),
        sentence=_sentence(chosen, reference, over[reference][chosen], over[baseline][chosen]),
        warnings=(*_left_out(menu), *_limits(chosen, controls, over[reference]), HEADS_WARNING),
        question=question.text,
        rows=tuple(sorted(rows, key=lambda row: -row.mrr)),
        setting=dict(setting),
        clusters=dict(clusters_record),
        plugins=plugins_of(chosen.method),
    )


def _gains(outcomes: Outcomes, candidates: Sequence[Candidate], reference: Candidate, items: Sequence[Tensor]) -> list[Gain]:
    scores = {candidate: _scores(outcomes, candidate) for candidate in {*candidates, reference}}
    ours = [scores[candidate] for candidate in candidates]
    return gains(ours, scores[reference], items, comparisons=len(candidates) - 1)


def _scores(outcomes: Outcomes, candidate: Candidate) -> Scores:
    return [[1 / outcome.text_to_image.double() for outcome in by_seed] for by_seed in outcomes[candidate]]


def _row(candidate: Candidate, outcomes: Outcomes, gain: Gain, over_baseline: Gain) -> Row:
    ranks = [outcome for by_seed in outcomes[candidate] for outcome in by_seed]

    def mean(values: Sequence[Tensor]) -> float:
        return float(torch.stack([value.double().mean() for value in values]).mean())

    return Row(
        name=str(candidate),
        mrr=mean([1 / outcome.text_to_image for outcome in ranks]),
        rank_1=mean([outcome.text_to_image <= 1 for outcome in ranks]),
        rank_10=mean([outcome.text_to_image <= 10 for outcome in ranks]),
        image_mrr=mean([1 / outcome.image_to_text for outcome in ranks]),
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
    over_learned = "" if str(reference) == BASELINE else f" Over {BASELINE} with a learned temperature: {over_baseline}."
    if gain.sign > 0:
        return f"Use {chosen}. MRR over {reference}, the best temperature: {gain}.{over_learned}"
    if chosen != reference:
        nothing = f"Nothing beats {reference}, the best temperature, significantly on these data."
        return f"{nothing} Use {chosen}, which has the highest MRR: {gain}.{over_learned}"
    return f"Nothing beats {reference} on these data. Use it.{over_learned}"


def _left_out(menu: Menu) -> list[str]:
    if not menu.left_out:
        return []
    return [f"Left out, because their plugins are not installed: {', '.join(menu.left_out)}."]


def _limits(chosen: Candidate, controls: Sequence[Candidate], over: Mapping[Candidate, Gain]) -> list[str]:
    """Return sentences about gains that could not be significant, and about controls that gain more than any method."""
    sentences = []
    if over[chosen].sign <= 0:
        ends = [_ends(gain) for candidate, gain in over.items() if not candidate.is_control]
        half = max(high - estimate for estimate, _, high in ends)
        sentences.append(f"Not every gain below {100 * half:.0f} % would be significant with so few queries and runs.")
    control = max(controls, key=lambda candidate: over[candidate].estimate, default=None)
    if control is not None and over[control].sign > 0 and over[control].estimate > over[chosen].estimate:
        sentences.append(
            f"Feature dropout {control.dropout:g} alone gains {over[control]}, more than {chosen}. Regularisation may help "
            "more than the choice of negatives."
        )
    return sentences
