"""The baseline as plugins: uniformly shuffled batches, every incorrect pair with the same weight."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory, NegativeSamplerFactory


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``in_batch``."""
    from clip_negatives_in_batch.sampler import InBatch

    return {"in_batch": InBatch}


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``uniform``."""
    from clip_negatives_in_batch.weighting import Uniform

    return {"uniform": Uniform}
