"""Batches of similar samples, from a graph of the frozen similarity: B3, GCBS, hard pairs."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory
from clip_negatives_plugins.graph_batches.b3 import B3, HardPairs
from clip_negatives_plugins.graph_batches.gcbs import Gcbs


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``b3``, ``gcbs`` and ``hard_pairs``."""
    return {"b3": B3, "gcbs": Gcbs, "hard_pairs": HardPairs}
