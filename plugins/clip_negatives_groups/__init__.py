"""Samples that are known to show the same: positives of each other (SupCon, UniCL), or left out of each other's negatives."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``id_mask`` and ``multi_positive``."""
    from clip_negatives_groups.weighting import IdMask, MultiPositive

    return {"id_mask": IdMask, "multi_positive": MultiPositive}
