"""The sigmoid loss of SigLIP, with the log-weights and the groups of any weighting."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``siglip``."""
    from clip_negatives_siglip.weighting import SigLip

    return {"siglip": SigLip}
