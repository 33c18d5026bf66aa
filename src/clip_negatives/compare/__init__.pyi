from .methods import parse_methods
from .study import Comparison, compare

__all__ = ["Comparison", "compare", "parse_methods"]
