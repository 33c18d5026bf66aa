"""A factor that changes during the training, given by points."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from clip_negatives.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_FACTOR = 1e4
SMALLEST_FACTOR = 1e-30  # of a table, in place of 0: -inf times this is -inf, so that one pass over the table is enough


def interpolated(points: tuple[tuple[float, float], ...], progress: Tensor) -> Tensor:
    """Return the value at `progress` of the line through the points, constant before the first and after the last one."""
    value = progress.new_full((), points[0][1])
    for (start, low), (end, high) in itertools.pairwise(points):
        value = value + (progress - start).clamp(0.0, end - start) * ((high - low) / (end - start))
    return value


def check_points(name: str, points: Any) -> None:
    """Check that `points` are pairs (share of the training, factor) with rising shares; InputError if not."""
    numbers = isinstance(points, tuple) and all(
        isinstance(point, tuple) and len(point) == 2 and all(isinstance(number, int | float) for number in point)
        for point in points
    )
    shares = [share for share, _ in points] if numbers else []
    rising = all(first < second for first, second in itertools.pairwise(shares))
    if not (numbers and rising and all(0 <= share <= 1 and 0 <= factor < LARGEST_FACTOR for share, factor in points)):
        raise InputError(f"{name} must be pairs (share 0 .. 1, factor at least 0) with rising shares, got {points!r}.")
