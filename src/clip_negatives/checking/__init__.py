"""The answer about a data set: are there false negatives, are the features good enough, what to do, and how sure that is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
