"""Batches by cluster: from one cluster, from all clusters in proportion, or from dissimilar clusters."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory
from clip_negatives_plugins.cluster_batches.sampler import ClusterDiverse, ClusterStratified, OneCluster


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``one_cluster``, ``cluster_stratified`` and ``cluster_diverse``."""
    return {"one_cluster": OneCluster, "cluster_stratified": ClusterStratified, "cluster_diverse": ClusterDiverse}
