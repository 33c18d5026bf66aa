"""Hard negatives, which count more the more similar the model finds them, and debiasing, which is made for them."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register the family."""
    from clip_negatives_hard.known_different import KnownDifferent
    from clip_negatives_hard.live import Llave
    from clip_negatives_hard.weighting import Dcl, DhnNce, Hcl, HnNce

    return {
        "dcl": Dcl,
        "hcl": Hcl,
        "hn_nce": HnNce,
        "dhn_nce": DhnNce,
        "llave": Llave,
        "known_different": KnownDifferent,
    }
