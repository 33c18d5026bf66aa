"""Image-text data sets: tables and webdataset tars."""

import lazy_loader

# Lazy, because the command line imports `Columns`, and its --help must not load pyarrow.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
