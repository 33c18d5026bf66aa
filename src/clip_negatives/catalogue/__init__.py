"""The emoji catalogue: a small real image-text data set that ships with the package.

One item (a Unicode emoji) is listed by several sellers (art styles) with its own title each, as a product catalogue lists
near-duplicates. Sources and licences are in ``data/ATTRIBUTION.md``.
"""

from clip_negatives.catalogue.export import export
from clip_negatives.catalogue.listings import SPLITS, Catalogue, load

__all__ = ["SPLITS", "Catalogue", "export", "load"]
