"""HTML reports: each is one file without external resources."""

from clip_negatives.report.check import write_check
from clip_negatives.report.choice import write_choice_page
from clip_negatives.report.comparison import write_comparison
from clip_negatives.report.inspection import write_inspection

__all__ = ["write_check", "write_choice_page", "write_comparison", "write_inspection"]
