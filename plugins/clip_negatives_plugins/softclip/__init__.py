"""Soft targets from the live similarity within a modality (SoftCLIP)."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.softclip.weighting import softclip


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``softclip``."""
    return {"softclip": softclip}
