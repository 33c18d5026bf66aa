"""Image-text data sets: tables and webdataset tars."""

import lazy_loader

# `Columns` has the defaults of the command line, whose --help must not load pyarrow.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
