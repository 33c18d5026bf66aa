"""Batches of hard negatives, mined with the features of the model in training."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory
from clip_negatives_plugins.mined.sampler import Mined


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``mined``."""
    return {"mined": Mined}
