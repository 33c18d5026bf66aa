"""Clusters of features: fit, options of clusterers, similarity of clusters."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["similarity"])  # clip_negatives exports it
