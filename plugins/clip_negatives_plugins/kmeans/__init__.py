"""The clusterer ``kmeans``: k-means, the clustering of the paper."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import ClustererFactory


@hookimpl
def clip_negatives_register_clusterers() -> Mapping[str, ClustererFactory]:
    """Register ``kmeans``."""
    from clip_negatives_plugins.kmeans.clusterer import KMeans

    return {"kmeans": KMeans}
