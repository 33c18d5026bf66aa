"""The sigmoid loss of SigLIP, with the weights of another weighting."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.siglip.weighting import SigLip


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``siglip``."""
    return {"siglip": SigLip}
