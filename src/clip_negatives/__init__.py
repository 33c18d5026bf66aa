"""Decide which incorrect pairs a CLIP model is trained on, and how much each one counts."""

import lazy_loader

# __init__.pyi lists the names, also for type checkers. Each is imported on first use: importing torch takes a second.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
