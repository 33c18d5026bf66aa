"""Negatives from earlier steps: cross-batch memory (XBM)."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.xbm.weighting import Xbm


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``xbm``."""
    return {"xbm": Xbm}
