"""Choose a method on a user's own data: heads are trained on folds of frozen features, with each method of a menu."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
