from .agreement import Neighbourhoods, SimilarPairs
from .folds import Fold, components, folds_of, near_duplicates, part_of
from .linear import LinearHeads
from .training import HeadSettings, train_heads

__all__ = [
    "Fold",
    "HeadSettings",
    "LinearHeads",
    "Neighbourhoods",
    "SimilarPairs",
    "components",
    "folds_of",
    "near_duplicates",
    "part_of",
    "train_heads",
]
