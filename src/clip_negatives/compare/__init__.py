"""Compare methods: train the same model on the same data with each method and several seeds."""

import lazy_loader

# The command line checks its arguments with `arguments` before torch is imported.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
