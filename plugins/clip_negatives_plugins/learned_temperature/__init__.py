"""A temperature for each sample, from a small network that is trained with the model (TempNet)."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import LossWeightingFactory
from clip_negatives_plugins.learned_temperature.weighting import LearnedTemperature


@hookimpl
def clip_negatives_register_loss_weightings() -> Mapping[str, LossWeightingFactory]:
    """Register ``learned_temperature``."""
    return {"learned_temperature": LearnedTemperature}
