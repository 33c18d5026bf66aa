"""The sentence of the answer, for made-up ranks."""

from __future__ import annotations

import pytest
import torch

from clip_negatives.choosing.answer import answer
from clip_negatives.choosing.choice import Choice
from clip_negatives.choosing.menu import BASELINE, menu_of
from clip_negatives.choosing.query_ranks import QueryRanks

FOLDS, QUERIES = 3, 400
BEST = "in_batch@0.1"
NOTHING = f"Nothing beats {BEST}, in-batch negatives at their best temperature,"


def choice_of(better: dict[str, float]) -> Choice:
    """Return the answer for ranks that are 1 with a probability of 0.5, and of `better` for some candidates, else 2."""
    menu = menu_of("gist@0.1")
    ranks = {}
    for place, candidate in enumerate(menu.candidates):
        generator = torch.Generator().manual_seed(place)
        share = better.get(str(candidate), 0.5)
        drawn = [torch.rand(QUERIES, generator=generator) for _ in range(FOLDS)]
        ranks[candidate] = [[QueryRanks(2 - (draws < share).long(), torch.ones(QUERIES))] for draws in drawn]
    return answer(menu, ranks, {}, "groups", [torch.arange(QUERIES)] * FOLDS, {})


def test_a_significant_gain() -> None:
    choice = choice_of({BASELINE: 0.3, BEST: 0.6, "gist@0.1": 0.9})
    assert choice.sentence.startswith("Use gist@0.1: MRR +")
    assert f"over {BEST}, in-batch negatives at their best temperature, +" in choice.sentence
    assert choice.sentence.endswith(f"over {BASELINE} as it is.")


def test_a_gain_that_may_be_chance() -> None:
    choice = choice_of({BASELINE: 0.3, BEST: 0.7, "gist@0.1": 0.71})
    assert choice.sentence.startswith(f"{NOTHING} significantly. Use gist@0.1, which has the highest MRR: +")


@pytest.mark.parametrize("better", [{BEST: 0.8}, {BEST: 0.7, "in_batch@0.1 dropout 0.1": 0.95}])
def test_no_method_has_a_higher_mrr(better: dict[str, float]) -> None:
    """Also if a control has one, which no training can use."""
    choice = choice_of(better)
    assert choice.sentence.startswith(
        f"Nothing beats {BEST}, in-batch negatives at their best temperature, on these data. Use "
    )
    assert any("dropout" in warning for warning in choice.warnings) == ("in_batch@0.1 dropout 0.1" in better)


def test_the_learned_temperature_is_the_best() -> None:
    choice = choice_of({BASELINE: 0.9})
    assert choice.sentence == (
        f"Nothing beats {BASELINE}, in-batch negatives at their best temperature, on these data. Use {BASELINE}."
    )
