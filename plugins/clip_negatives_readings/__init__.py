"""What the abstracts of Tagami et al. can be read to say, each part by itself, as rivals of the default."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register the readings."""
    from clip_negatives_readings.gates import Gate, Gate2
    from clip_negatives_readings.swap import Swap
    from clip_negatives_readings.weight import Weight

    return {"gate": Gate, "gate2": Gate2, "swap": Swap, "weight": Weight}
