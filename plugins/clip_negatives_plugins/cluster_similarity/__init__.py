"""The sampler after Tagami et al. (WSCG 2024): incorrect pairs by the similarity between clusters."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory
from clip_negatives_plugins.cluster_similarity.sampler import ClusterSimilarity


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``cluster_similarity``."""
    return {"cluster_similarity": ClusterSimilarity}
