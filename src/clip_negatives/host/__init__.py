"""Plugin host: hook specifications, registry of plugins, typed options."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["registry"])  # clip_negatives exports it
