"""Single parts of the method of Tagami et al., by our reading of its abstracts: alternatives to the default."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.paper_variants.gates import Gate, Gate2
from clip_negatives_plugins.paper_variants.swap import Swap
from clip_negatives_plugins.paper_variants.weight import Weight


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``gate``, ``gate2``, ``swap`` and ``weight``."""
    return {"gate": Gate, "gate2": Gate2, "swap": Swap, "weight": Weight}
