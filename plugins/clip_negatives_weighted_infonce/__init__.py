"""Tagami et al. (WSCG 2024): InfoNCE in which a negative counts more the less similar the images are."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``weighted_infonce``."""
    from clip_negatives_weighted_infonce.weighting import WeightedInfoNCE

    return {"weighted_infonce": WeightedInfoNCE}
