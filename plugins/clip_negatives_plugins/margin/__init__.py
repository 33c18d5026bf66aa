"""Removal of too similar negatives, by the live similarity (Qwen3-Embedding) or the frozen similarity (GIST)."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.margin.weighting import Gist, Margin


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``margin`` and ``gist``."""
    return {"margin": Margin, "gist": Gist}
