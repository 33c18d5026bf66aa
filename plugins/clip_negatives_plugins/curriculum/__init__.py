"""Batches that grow harder during the training."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory
from clip_negatives_plugins.curriculum.sampler import Curriculum


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``curriculum``."""
    return {"curriculum": Curriculum}
