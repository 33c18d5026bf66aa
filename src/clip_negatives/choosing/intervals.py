"""Simultaneous confidence intervals of the gains of several candidates, over queries and runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_negatives.metrics.statistics import Gain

CONFIDENCE = 0.95  # of all intervals of a table together

Scores = Sequence[Sequence[Tensor]]  # by fold and seed: the reciprocal rank of each query, float64


def gains(candidates: Sequence[Scores], reference: Scores, groups: Sequence[Tensor], comparisons: int) -> list[Gain]:
    """Return the gain of each candidate over a reference.

    The variance of a gain is the sum of two parts:

    * Queries: the variance over the groups of each fold, because queries of one group are not independent.
    * Runs: with several seeds, the variance over the seeds of a fold. With one seed, the variance over folds minus the query
      part. The run part is pooled over candidates, because one candidate has too few runs.

    The intervals use Student's t with the degrees of freedom of the run part, and Bonferroni's correction: they are
    simultaneous confidence intervals at the level `CONFIDENCE`. All this is our choice.

    Args:
        candidates: scores of each candidate, on the same queries.
        reference: scores of the reference.
        groups: group of each query of each fold, int64.
        comparisons: number of simultaneous intervals, at least 1.
    """
    from scipy.stats import t

    differences = [_differences(scores, reference) for scores in candidates]
    n_folds, n_seeds = len(reference), len(reference[0])
    query_variances = [_query_variance(difference, groups) for difference in differences]
    runs = torch.stack([torch.stack([fold.mean(1) for fold in difference]) for difference in differences])  # (C, F, S)
    varies = (runs - runs.mean((1, 2), keepdim=True)).abs().amax((1, 2)) > 0  # a copy of the reference has no variance to pool
    if n_seeds > 1:
        freedom = int(varies.sum()) * n_folds * (n_seeds - 1)
        run_variance = runs[varies].var(2).mean() / (n_folds * n_seeds) if freedom else torch.zeros(())
    else:
        freedom = int(varies.sum()) * (n_folds - 1)
        between = runs[varies, :, 0].var(1).mean() / n_folds if freedom else torch.zeros(())
        queries = torch.stack(query_variances)[varies].mean() if freedom else torch.zeros(())
        run_variance = (between - queries).clamp(min=0)
    quantile = float(t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), max(freedom, 1)))
    scale = float(torch.stack([fold.mean() for seeds in reference for fold in seeds]).mean())
    result = []
    for run, variance, is_varying in zip(runs, query_variances, varies.tolist(), strict=True):
        mean = float(run.mean()) / scale
        half = quantile * float((variance + (run_variance if is_varying else 0)).sqrt()) / scale
        result.append(Gain(mean, mean - half, mean + half))
    return result


def _differences(scores: Scores, reference: Scores) -> list[Tensor]:
    """Return the differences of each fold, shape (seeds, queries)."""
    return [
        torch.stack([ours - theirs for ours, theirs in zip(*fold, strict=True)]) for fold in zip(scores, reference, strict=True)
    ]


def _query_variance(differences: Sequence[Tensor], groups: Sequence[Tensor]) -> Tensor:
    """Return the query part of the variance of the mean over folds; queries of one group are not independent."""
    total = torch.zeros((), dtype=torch.float64)
    for difference, group in zip(differences, groups, strict=True):
        mean = difference.mean(0)
        _, places, counts = group.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(counts), dtype=mean.dtype).scatter_add_(0, places, mean - mean.mean())
        n = len(counts)
        total += sums.square().sum() * n / max(n - 1, 1) / len(mean) ** 2
    return total / len(differences) ** 2
