"""Negatives that are too similar to be trusted: by the model itself (Qwen3-Embedding), or by a guide (GIST)."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``margin`` and ``gist``."""
    from clip_negatives_margin.weighting import Gist, Margin

    return {"margin": Margin, "gist": Gist}
