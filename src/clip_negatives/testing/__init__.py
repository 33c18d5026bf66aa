"""The conformance kit: checks that every plugin of a kind must pass, for plugin authors.

>>> from clip_negatives.testing import check_negative_sampler
>>> sorted({outcome.status for outcome in check_negative_sampler("in_batch")})
['not applicable', 'passed']
"""

import lazy_loader

# pytest imports this package for its fixtures wherever it is installed: this must not import torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
