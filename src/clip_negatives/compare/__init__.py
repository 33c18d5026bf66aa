"""Compare choices of negatives: the same model, data, steps and initial weights under several methods and seeds."""

from clip_negatives.compare.methods import Method, parse_methods
from clip_negatives.compare.study import Comparison, compare

__all__ = ["Comparison", "Method", "compare", "parse_methods"]
