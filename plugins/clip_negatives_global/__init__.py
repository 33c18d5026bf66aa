"""Losses that remember something of every sample: SogCLR, GloFND."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``sogclr`` and ``glofnd``."""
    from clip_negatives_global.glofnd import GloFnd
    from clip_negatives_global.sogclr import SogClr

    return {"sogclr": SogClr, "glofnd": GloFnd}
