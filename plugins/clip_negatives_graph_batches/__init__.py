"""Batches of near samples, from a graph of frozen similarity: B3, GCBS, hard pairs."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register the family."""
    from clip_negatives_graph_batches.b3 import B3, HardPairs
    from clip_negatives_graph_batches.gcbs import Gcbs

    return {"b3": B3, "gcbs": Gcbs, "hard_pairs": HardPairs}
