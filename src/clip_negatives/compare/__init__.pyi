from .methods import parse_methods
from .results import Comparison
from .study import compare

__all__ = ["Comparison", "compare", "parse_methods"]
