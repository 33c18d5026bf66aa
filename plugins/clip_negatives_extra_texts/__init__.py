"""Texts beside those of the batch: of hard pairs (HELIP), with swapped words (NegCLIP), of reliable pairs (Tagami et al.)."""

from __future__ import annotations

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register the family."""
    from clip_negatives_extra_texts.hard import HardTexts
    from clip_negatives_extra_texts.reliable import ReliableTexts
    from clip_negatives_extra_texts.swapped import SwappedWords

    return {"hard_texts": HardTexts, "reliable_texts": ReliableTexts, "swapped_words": SwappedWords}
