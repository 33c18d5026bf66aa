from .false_negatives import count_false_negatives, false_negative_figures
from .modules import FalseNegatives, RankAtK
from .rank import chance_rank_at_k, first_correct, rank_at_k

__all__ = [
    "FalseNegatives",
    "RankAtK",
    "chance_rank_at_k",
    "count_false_negatives",
    "false_negative_figures",
    "first_correct",
    "rank_at_k",
]
