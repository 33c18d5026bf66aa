"""Batches in which frequent clusters or items are rarer, as in MetaCLIP."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory
from clip_negatives_plugins.balanced.sampler import Balanced


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``balanced``."""
    return {"balanced": Balanced}
