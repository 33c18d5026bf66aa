from .columns import Columns
from .csv import CsvPairs
from .opening import open_pairs
from .pairs import BrokenSample, ImageTextPairs, Part, Sample
from .tars import TarPairs

__all__ = ["BrokenSample", "Columns", "CsvPairs", "ImageTextPairs", "Part", "Sample", "TarPairs", "open_pairs"]
