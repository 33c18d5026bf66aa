"""Encode a data set in parts, on any number of processes; an interrupted run continues after its last finished part."""

from clip_negatives.features.run import encode
from clip_negatives.features.store import EncodedFeatures

__all__ = ["EncodedFeatures", "encode"]
