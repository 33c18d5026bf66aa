"""Result cards: Markdown files with the metadata that the Hugging Face hub reads, in the folders of results."""

from clip_negatives.report.card.comparison import write_comparison_card
from clip_negatives.report.card.training import write_training_card

__all__ = ["write_comparison_card", "write_training_card"]
