"""Draws of unequal probability for all steps of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor


def systematic(weights: Tensor, n_draws: int, generator: torch.Generator) -> Tensor:
    """Return `n_draws` samples, equal ones side by side, int64, shape (n_draws,).

    Sample i occurs ``n_draws * weights[i] / weights.sum()`` times in expectation; the number is rounded up or down at random
    (systematic sampling). All computation is in integers, so both are exact.

    Args:
        weights: int64, at least 1, shape (N,); their sum and ``n_draws ** 2`` are together below 2^63.
        n_draws: number of draws, at least 1.
        generator: source of randomness.
    """
    order = torch.randperm(len(weights), generator=generator)
    ends = weights[order].cumsum(0)
    total = int(ends[-1])
    quotient, remainder = divmod(total, n_draws)
    start = torch.randint(total, (1,), generator=generator)
    number = torch.arange(n_draws)
    points = number * quotient + (number * remainder + start) // n_draws  # (number * total + start) // n_draws may overflow
    return order[torch.searchsorted(ends, points, right=True)]


def dealt(draws: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Return the draws of each step, shape (steps, S): each draw in a random step, equal draws in different steps.

    The draws are cut into S parts, and each step gets one draw of each part. If equal draws are in two parts, the second part
    deals them to other steps than the first.

    Args:
        draws: equal ones side by side, none more often than `steps`, int64, shape (S * steps,).
        steps: number of steps.
        generator: source of randomness.
    """
    parts = draws.view(-1, steps)
    plan = torch.empty_like(parts)
    order = torch.arange(steps)
    for number, part in enumerate(parts):
        has_first = torch.zeros(steps, dtype=torch.int8)
        if number:
            has_first[order[parts[number - 1] == part[0]]] = 1
        order = torch.randperm(steps, generator=generator)
        order = order[has_first[order].argsort(stable=True)]
        plan[number, order] = part
    return plan.T.contiguous()
