"""The control that the authors of the paper use: as many incorrect pairs dropped as by the gate, but at random."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``random_reduction``."""
    from clip_negatives_random_reduction.weighting import RandomReduction

    return {"random_reduction": RandomReduction}
