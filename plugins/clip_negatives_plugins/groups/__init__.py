"""Samples of one group: masked as negatives of each other, or positives of each other (SupCon, UniCL)."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.groups.weighting import IdMask, MultiPositive


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``id_mask`` and ``multi_positive``."""
    return {"id_mask": IdMask, "multi_positive": MultiPositive}
