"""HTML reports: each is one file without external resources."""

from clip_negatives.report.comparison import write_comparison
from clip_negatives.report.inspection import write_inspection

__all__ = ["write_comparison", "write_inspection"]
