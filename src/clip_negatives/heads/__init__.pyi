from .folds import Fold, folds_of, near_duplicates, part_of
from .linear import LinearHeads
from .training import HeadSettings, train_heads

__all__ = [
    "Fold",
    "HeadSettings",
    "LinearHeads",
    "folds_of",
    "near_duplicates",
    "part_of",
    "train_heads",
]
