"""Soft targets from the similarity of samples: blend, CWCL and X-CLR."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.soft_targets.blend import Blend
from clip_negatives_plugins.soft_targets.weighting import Cwcl, XClr


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``blend``, ``cwcl`` and ``x_clr``."""
    return {"blend": Blend, "cwcl": Cwcl, "x_clr": XClr}
