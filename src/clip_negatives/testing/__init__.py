"""The conformance kit: what every plugin of a kind must do, as checks that its author runs.

>>> from clip_negatives.testing import check_negative_sampler
>>> sorted({outcome.status for outcome in check_negative_sampler("in_batch")})
['not applicable', 'passed']
"""

from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.kit import (
    CHECKS,
    Outcome,
    check_clusterer,
    check_loss_weighting,
    check_negative_sampler,
    outcomes,
)
from clip_negatives.testing.parametrize import parametrize_with_checks
from clip_negatives.testing.subject import ConformanceError, NotApplicableError, Subject

__all__ = [
    "CHECKS",
    "ConformanceError",
    "NotApplicableError",
    "Outcome",
    "Subject",
    "check_clusterer",
    "check_loss_weighting",
    "check_negative_sampler",
    "make_blobs",
    "outcomes",
    "parametrize_with_checks",
]
