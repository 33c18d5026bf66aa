"""Metrics of retrieval and of false negatives: functions, and torchmetrics classes that use them."""

import lazy_loader

# torchmetrics takes seconds to import; the functions do not need it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
