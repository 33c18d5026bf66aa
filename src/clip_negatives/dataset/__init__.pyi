from .columns import Columns
from .hugging_face import dataset_pairs
from .opening import open_pairs, open_table
from .pairs import BrokenSample, ImageTextPairs, Part, Sample
from .tables import TablePairs
from .tars import TarPairs

__all__ = [
    "BrokenSample",
    "Columns",
    "ImageTextPairs",
    "Part",
    "Sample",
    "TablePairs",
    "TarPairs",
    "dataset_pairs",
    "open_pairs",
    "open_table",
]
