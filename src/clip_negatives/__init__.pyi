from . import anchor_loss, catalogue, errors, integrations, interfaces, metrics, sampling
from .anchor_loss import AnchorLoss
from .anchors import Anchors
from .clustering import similarity
from .clustering.label_clusterer import LabelClusterer
from .dataset.columns import Columns
from .errors import ClipNegativesError
from .feature_queue import FeatureQueue
from .function_plugins import sampler, weighting
from .host import registry
from .host.hookspecs import hookimpl, hookspec
from .host.method import Method
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
from .learning_sampler import LearningSampler
from .losses import functional
from .losses.functional import weighted_info_nce
from .losses.module import NegativesClipLoss
from .pipelines.prepare import prepare
from .pipelines.recipe import Recipe
from .sampling import PlannedSampler
from .step import BatchSamples, Step
from .storage.clusters_folder import ClustersFolder, read_clusters, write_clusters
from .training.temperature import hold_temperature

__version__: str

__all__ = [
    "AnchorLoss",
    "Anchors",
    "BatchSamples",
    "ClipNegativesError",
    "Clusterer",
    "Clustering",
    "Clusters",
    "ClustersFolder",
    "Columns",
    "FeatureQueue",
    "IncorrectPairs",
    "LabelClusterer",
    "LearningSampler",
    "LossTerms",
    "LossWeighting",
    "Method",
    "NegativeSampler",
    "NegativesClipLoss",
    "PlannedSampler",
    "Recipe",
    "SamplingContext",
    "Step",
    "anchor_loss",
    "attach",
    "catalogue",
    "errors",
    "functional",
    "hold_temperature",
    "hookimpl",
    "hookspec",
    "integrations",
    "interfaces",
    "metrics",
    "prepare",
    "read_clusters",
    "registry",
    "sampler",
    "sampling",
    "similarity",
    "weighted_info_nce",
    "weighting",
    "write_clusters",
]
