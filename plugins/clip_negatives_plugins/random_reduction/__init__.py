"""The control experiment of the paper: removes as many incorrect pairs as ``weighted_infonce:remove=true``, but at random."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.random_reduction.weighting import RandomReduction


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``random_reduction``."""
    return {"random_reduction": RandomReduction}
