"""The weighted InfoNCE loss: function, module, backends and kernels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["functional"])  # clip_negatives exports it
