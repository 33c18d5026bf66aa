from .blobs import make_blobs
from .kit import (
    CHECKS,
    Outcome,
    check_clusterer,
    check_loss_weighting,
    check_negative_sampler,
    outcomes,
    parametrize_with_checks,
)
from .subject import ConformanceError, NotApplicableError, Subject

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
