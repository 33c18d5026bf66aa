"""The baseline: shuffled batches, and the same weight for every incorrect pair."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory, NegativeSamplerFactory
from clip_negatives_plugins.in_batch.sampler import InBatch
from clip_negatives_plugins.in_batch.weighting import Uniform


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``in_batch``."""
    return {"in_batch": InBatch}


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``uniform``."""
    return {"uniform": Uniform}
