"""Statistics of a comparison: gains over a baseline, paired over seeds and queries, with simultaneous confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clip_negatives.errors import InputError
from clip_negatives.metrics.power import CONFIDENCE, Variance

DRAWS = 20_000  # simulated draws of the largest t statistic

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gain:
    """Gain of a method over the baseline.

    Attributes:
        estimate: relative gain of the mean score (0.05 is 5 %), or difference of the mean scores.
        low: lower end of the interval; None for a single seed.
        high: upper end of the interval; None for a single seed.
        variance: variance of the log of 1 + gain, or of the difference, if it is known.

    Examples:
        >>> str(Gain(0.05, 0.01, 0.092))
        '+5.0 % [+1.0, +9.2]'
    """

    estimate: float
    low: float | None
    high: float | None
    variance: Variance | None = None

    @property
    def sign(self) -> int:
        """Return 1 for a significant gain, -1 for a significant loss, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        """Return a relative gain and its interval, in percent."""
        interval = "" if self.low is None or self.high is None else f" [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{100 * self.estimate:+.1f} %{interval}"


def reciprocal(ranks: ArrayLike) -> Scores:
    """Return the reciprocal ranks, whose mean is the MRR. `ranks` are from 1, of any shape."""
    return 1 / np.asarray(ranks, dtype=np.float64)


def hits(ranks: ArrayLike, k: int) -> Scores:
    """Return 1 for each rank up to `k`, else 0; the mean is Rank@k."""
    return (np.asarray(ranks) <= k).astype(np.float64)


def gains(
    scores: Mapping[str, ArrayLike], baseline: str, groups: ArrayLike | None = None, *, relative: bool = True
) -> dict[str, Gain]:
    """Return the gain of each method over `baseline`, with simultaneous confidence intervals.

    Seeds and queries are both random. The standard error of a gain has a part of the queries and a part of the seeds. With two
    or three seeds, one method alone tells too little about the part of the seeds, so it is pooled over the methods: it is the
    residual mean square of a layout of methods (treatments) and seeds (blocks). The intervals are those of the largest t
    statistic over all methods (Dunnett's comparison with a control), with Satterthwaite's degrees of freedom.

    * Equals, for many seeds and one method, a paired t test over seeds plus the sampling error of the queries.
    * Source: Dunnett, JASA 50 (1955) 1096; Hothorn, Bretz and Westfall, Biometrical Journal 50 (2008) 346;
      Satterthwaite, Biometrics Bulletin 2 (1946) 110.

    Args:
        scores: scores of each method, such as `reciprocal` ranks, shape (seeds, queries). Row s of all methods has the same
            seed, and column q the same query.
        baseline: the method in `scores` that the others are compared with.
        groups: id of the group of each query, shape (queries,): queries of one item are not independent. None: every query is
            a group of its own.
        relative: whether gains are relative to the mean of the baseline, or differences.

    Raises:
        InputError: shapes differ, there are fewer than two groups, or gains are relative and a mean score is not positive.

    Examples:
        >>> ranks = {"in_batch": [[2, 4, 1], [4, 2, 1]], "other": [[1, 2, 1], [2, 1, 1]]}
        >>> result = gains({name: reciprocal(rank) for name, rank in ranks.items()}, "in_batch")
        >>> round(result["other"].estimate, 3)
        0.429
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    members = _members(arrays, baseline, groups)
    means = {name: float(values.mean()) for name, values in arrays.items()}
    if relative and min(means.values()) <= 0:
        worst = min(means, key=means.__getitem__)
        raise InputError(f"The mean score of {worst} is {means[worst]:g}, so no relative gain exists. Use relative=False.")
    deviations = {
        name: _by_group((values - means[name]) / (means[name] if relative else 1.0), members) for name, values in arrays.items()
    }
    names = [name for name in arrays if name != baseline]
    seeds, queries = next(iter(deviations.values())).shape
    if seeds == 1 or not names:
        return {name: Gain(_between(means[name], means[baseline], relative), None, None) for name in names}
    differences = np.stack([deviations[name] - deviations[baseline] for name in names])
    residual = _residual(np.stack([values.mean(axis=1) for values in deviations.values()]))
    variances = [_variance(difference, residual, len(names)) for difference in differences]
    critical = _critical(differences, residual, min(variance.degrees_of_freedom(seeds, queries) for variance in variances))
    result = {}
    for name, variance in zip(names, variances, strict=True):
        half = critical * variance.standard_error(seeds, queries)
        if relative:
            log = math.log(means[name] / means[baseline])
            ends = math.expm1(log - half), math.expm1(log + half)
        else:
            ends = means[name] - means[baseline] - half, means[name] - means[baseline] + half
        result[name] = Gain(_between(means[name], means[baseline], relative), *ends, variance)
    return result


def _between(mean: float, baseline: float, relative: bool) -> float:
    return mean / baseline - 1 if relative else mean - baseline


def _members(arrays: Mapping[str, Scores], baseline: str, groups: ArrayLike | None) -> NDArray[np.int64] | None:
    """Check the shapes, and return the groups numbered from 0."""
    if baseline not in arrays:
        raise InputError(f"The baseline {baseline!r} has no scores. Scores: {', '.join(arrays)}.")
    shape = arrays[baseline].shape
    if any(values.shape != shape for values in arrays.values()) or len(shape) != 2 or 0 in shape:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in arrays.items())
        raise InputError(f"Expected scores of one shape (seeds, queries) for all methods, got {shapes}.")
    members = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
    if members is not None and members.shape != shape[1:]:
        raise InputError(f"Expected a group for each of {shape[1]} queries, got shape {members.shape}.")
    if (shape[1] if members is None else int(members.max()) + 1) < 2:
        raise InputError("Expected at least two groups of queries.")
    return members


def _by_group(deviations: Scores, members: NDArray[np.int64] | None) -> Scores:
    """Return the sums by group, shape (seeds, groups), scaled so that their mean is the mean over the queries."""
    if members is None:
        return deviations
    n_groups = int(members.max()) + 1
    sums = np.zeros((len(deviations), n_groups))
    for row, values in zip(sums, deviations, strict=True):
        row += np.bincount(members, weights=values, minlength=n_groups)
    return sums * (n_groups / len(members))


def _residual(means: Scores) -> float:
    """Return the residual mean square of methods x seeds, shape (methods, seeds); the mean of each method is 0."""
    methods, seeds = means.shape
    return float(((means - means.mean(axis=0)) ** 2).sum() / ((methods - 1) * (seeds - 1)))


def _variance(difference: Scores, residual: float, methods: int) -> Variance:
    """Return the variance components of a difference, shape (seeds, groups), whose mean is 0. No component is negative."""
    seeds, queries = difference.shape
    by_query = float(difference.mean(axis=0).var(ddof=1))
    centred = difference - difference.mean(axis=1, keepdims=True) - difference.mean(axis=0)
    interaction = float((centred**2).sum() / ((seeds - 1) * (queries - 1)))
    return Variance(
        max(0.0, 2 * residual - interaction / queries), max(0.0, by_query - interaction / seeds), interaction, methods
    )


def _critical(differences: Scores, residual: float, degrees: float) -> float:
    """Return the quantile of the largest absolute t statistic; methods correlate because they share baseline and queries."""
    methods, seeds, queries = differences.shape
    covariance = np.atleast_2d(np.cov(differences.mean(axis=1))) / queries + residual / seeds * (1 + np.eye(methods))
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / np.where(np.outer(scale, scale) > 0, np.outer(scale, scale), 1.0)
    generator = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(values.clip(min=0))
    normal = generator.standard_normal((DRAWS, methods)) @ root.T
    divisor = 1.0 if math.isinf(degrees) else np.sqrt(generator.chisquare(degrees, DRAWS) / degrees)
    return float(np.quantile(np.abs(normal).max(axis=1) / divisor, CONFIDENCE))
