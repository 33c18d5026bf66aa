"""Targets that share out what is alike, in the place of one positive: CWCL and X-CLR."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``cwcl`` and ``x_clr``."""
    from clip_negatives_soft_targets.weighting import Cwcl, XClr

    return {"cwcl": Cwcl, "x_clr": XClr}
