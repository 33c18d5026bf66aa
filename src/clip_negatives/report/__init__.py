"""Reports to look at: one HTML page each, with all that it shows inside it."""

from clip_negatives.report.comparison import write_comparison
from clip_negatives.report.inspection import write_inspection

__all__ = ["write_comparison", "write_inspection"]
