"""The emoji catalogue: a small real image-text data set that ships with the package.

Each item (a Unicode emoji) is listed by several sellers (art styles) under different titles, like near-duplicates in a product
catalogue. Sources and licences are in ``data/ATTRIBUTION.md``.
"""

from clip_negatives.catalogue.export import export
from clip_negatives.catalogue.listings import SPLITS, Catalogue, load

__all__ = ["SPLITS", "Catalogue", "export", "load"]
