"""How sure a gain is: intervals over queries and runs, for several candidates at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_negatives.metrics.statistics import Gain

CONFIDENCE = 0.95  # that all intervals of a table hold at the same time

Scores = Sequence[Sequence[Tensor]]  # by fold and seed: the reciprocal rank of each query, float64


def gains(candidates: Sequence[Scores], reference: Scores, groups: Sequence[Tensor], comparisons: int) -> list[Gain]:
    """Return the gain of each candidate over a reference.

    A difference varies for two reasons, and their variances are added. Other queries would have been asked: the variance over
    the groups of a fold, because queries of one group are not independent. Other heads would have been trained: with several
    seeds, the variance over the seeds of a fold; with one seed, the variance over folds, less the part of the queries. This
    second variance is pooled over the candidates, because a single candidate has too few runs to estimate it. The intervals
    are those of Student's t, with the degrees of freedom of the second variance, and of Bonferroni: together they hold with
    the probability `CONFIDENCE`. All this is our choice.

    Args:
        candidates: scores of each candidate, on the same queries.
        reference: scores of the reference.
        groups: group of each query of each fold, int64.
        comparisons: number of intervals that hold together, at least 1.
    """
    from scipy.stats import t

    differences = [_differences(scores, reference) for scores in candidates]
    n_folds, n_seeds = len(reference), len(reference[0])
    query_variances = [_query_variance(difference, groups) for difference in differences]
    runs = torch.stack([torch.stack([fold.mean(1) for fold in difference]) for difference in differences])  # (C, F, S)
    differs = (runs - runs.mean((1, 2), keepdim=True)).abs().amax((1, 2)) > 0  # a copy of the reference tells nothing
    if n_seeds > 1:
        freedom = int(differs.sum()) * n_folds * (n_seeds - 1)
        run_variance = runs[differs].var(2).mean() / (n_folds * n_seeds) if freedom else torch.zeros(())
    else:
        freedom = int(differs.sum()) * (n_folds - 1)
        between = runs[differs, :, 0].var(1).mean() / n_folds if freedom else torch.zeros(())
        queries = torch.stack(query_variances)[differs].mean() if freedom else torch.zeros(())
        run_variance = (between - queries).clamp(min=0)
    quantile = float(t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), max(freedom, 1)))
    scale = float(torch.stack([fold.mean() for seeds in reference for fold in seeds]).mean())
    result = []
    for run, variance, moves in zip(runs, query_variances, differs.tolist(), strict=True):
        mean = float(run.mean()) / scale
        half = quantile * float((variance + (run_variance if moves else 0)).sqrt()) / scale
        result.append(Gain(mean, mean - half, mean + half))
    return result


def _differences(scores: Scores, reference: Scores) -> list[Tensor]:
    """Return the differences of each fold, shape (seeds, queries)."""
    return [
        torch.stack([ours - theirs for ours, theirs in zip(*fold, strict=True)]) for fold in zip(scores, reference, strict=True)
    ]


def _query_variance(differences: Sequence[Tensor], groups: Sequence[Tensor]) -> Tensor:
    """Return the variance of the mean over folds that other queries would cause; queries of one group are not independent."""
    total = torch.zeros((), dtype=torch.float64)
    for difference, group in zip(differences, groups, strict=True):
        mean = difference.mean(0)
        _, places, counts = group.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(counts), dtype=mean.dtype).scatter_add_(0, places, mean - mean.mean())
        n = len(counts)
        total += sums.square().sum() * n / max(n - 1, 1) / len(mean) ** 2
    return total / len(differences) ** 2
