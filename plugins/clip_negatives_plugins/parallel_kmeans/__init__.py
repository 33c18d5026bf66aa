"""The clusterer ``parallel_kmeans``: k-means on any number of processes, for data too large for one process."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import ClustererFactory


@hookimpl
def clip_negatives_register_clusterers() -> Mapping[str, ClustererFactory]:
    """Register ``parallel_kmeans``."""
    from clip_negatives_plugins.parallel_kmeans.clusterer import ParallelKMeans

    return {"parallel_kmeans": ParallelKMeans}
