"""Batches by cluster: from one, from all in proportion, or as diverse as can be."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register the family."""
    from clip_negatives_cluster_batches.sampler import ClusterDiverse, ClusterStratified, OneCluster

    return {"one_cluster": OneCluster, "cluster_stratified": ClusterStratified, "cluster_diverse": ClusterDiverse}
