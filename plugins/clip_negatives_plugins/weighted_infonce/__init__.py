"""The loss after Tagami et al. (WSCG 2024): InfoNCE with higher weights for dissimilar negatives."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.weighted_infonce.weighting import WeightedInfoNCE


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``weighted_infonce``."""
    return {"weighted_infonce": WeightedInfoNCE}
