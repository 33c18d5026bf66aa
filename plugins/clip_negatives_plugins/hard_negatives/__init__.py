"""Hard negatives (a higher weight if the model finds them similar) and debiasing (correction for false negatives)."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.hard_negatives.known_different import KnownDifferent
from clip_negatives_plugins.hard_negatives.live import Llave
from clip_negatives_plugins.hard_negatives.weighting import Dcl, DhnNce, Hcl, HnNce


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``dcl``, ``hcl``, ``hn_nce``, ``dhn_nce``, ``llave`` and ``known_different``."""
    return {"dcl": Dcl, "hcl": Hcl, "hn_nce": HnNce, "dhn_nce": DhnNce, "llave": Llave, "known_different": KnownDifferent}
