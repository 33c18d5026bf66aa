"""Losses that keep a state for every sample: SogCLR and GloFND."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.global_losses.glofnd import GloFnd
from clip_negatives_plugins.global_losses.sogclr import SogClr


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``sogclr`` and ``glofnd``."""
    return {"sogclr": SogClr, "glofnd": GloFnd}
