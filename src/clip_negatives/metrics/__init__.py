"""torchmetrics for retrieval and for false negatives."""

from clip_negatives.metrics.false_negatives import FalseNegatives
from clip_negatives.metrics.rank import RankAtK, chance_rank_at_k, first_correct, rank_at_k

__all__ = ["FalseNegatives", "RankAtK", "chance_rank_at_k", "first_correct", "rank_at_k"]
