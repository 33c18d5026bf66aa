"""Tagami et al. (WSCG 2024): incorrect pairs chosen by the similarity between clusters."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``cluster_similarity``."""
    from clip_negatives_cluster_similarity.sampler import ClusterSimilarity

    return {"cluster_similarity": ClusterSimilarity}
