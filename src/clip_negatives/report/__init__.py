"""HTML reports, each one file without external resources, and result cards."""

from clip_negatives.report.card import write_comparison_card, write_training_card
from clip_negatives.report.check import write_check
from clip_negatives.report.choice import write_choice_page
from clip_negatives.report.comparison import write_comparison
from clip_negatives.report.inspection import write_inspection

__all__ = [
    "write_check",
    "write_choice_page",
    "write_comparison",
    "write_comparison_card",
    "write_inspection",
    "write_training_card",
]
