"""Targets by the similarities that a teacher sees."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.distilled.weighting import distilled


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``distilled``."""
    return {"distilled": distilled}
