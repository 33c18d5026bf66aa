from . import anchors, catalogue, functional, integrations, metrics, registry, sampling, similarity
from .anchors import AnchorLoss, Anchors
from .artifacts import ClustersFolder, read_clusters, write_clusters
from .errors import ClipNegativesError
from .functional import weighted_info_nce
from .hookspecs import hookimpl, hookspec
from .integrations.loop import attach
from .interfaces import (
    Clusterer,
    Clustering,
    Clusters,
    IncorrectPairs,
    LossTerms,
    LossWeighting,
    NegativeSampler,
    SamplingContext,
)
from .loss import NegativesClipLoss
from .sampling import PlannedSampler
from .temperature import hold_temperature

__version__: str

__all__ = [
    "AnchorLoss",
    "Anchors",
    "ClipNegativesError",
    "Clusterer",
    "Clustering",
    "Clusters",
    "ClustersFolder",
    "IncorrectPairs",
    "LossTerms",
    "LossWeighting",
    "NegativeSampler",
    "NegativesClipLoss",
    "PlannedSampler",
    "SamplingContext",
    "anchors",
    "attach",
    "catalogue",
    "functional",
    "hold_temperature",
    "hookimpl",
    "hookspec",
    "integrations",
    "metrics",
    "read_clusters",
    "registry",
    "sampling",
    "similarity",
    "weighted_info_nce",
    "write_clusters",
]
