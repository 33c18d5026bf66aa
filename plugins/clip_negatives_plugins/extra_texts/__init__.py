"""Added captions: from hard pairs (HELIP), with swapped words (NegCLIP), from reliable pairs (Tagami et al.)."""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory
from clip_negatives_plugins.extra_texts.hard import HardTexts
from clip_negatives_plugins.extra_texts.reliable import ReliableTexts
from clip_negatives_plugins.extra_texts.swapped import SwappedWords


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register ``hard_texts``, ``reliable_texts`` and ``swapped_words``."""
    return {"hard_texts": HardTexts, "reliable_texts": ReliableTexts, "swapped_words": SwappedWords}
