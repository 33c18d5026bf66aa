"""Linear heads on frozen features: train them with any method in seconds, to compare methods before towers are trained."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
