"""Decide which incorrect pairs a CLIP model is trained on, and how much each one counts."""

import lazy_loader

# The names are listed in __init__.pyi, where type checkers look for them too. Nothing is imported until one is used:
# torch alone would cost a second.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
