"""Added captions: from hard pairs (HELIP), with swapped words (NegCLIP), from reliable pairs (Tagami et al.).

Also hard negative images with their captions (TripletCLIP), and captions that are drawn anew (LaCLIP, DreamLIP).
"""

from collections.abc import Mapping

from clip_negatives import hookimpl
from clip_negatives.interfaces import NegativeSamplerFactory
from clip_negatives_plugins.extra_texts.hard import HardTexts
from clip_negatives_plugins.extra_texts.redrawn import RedrawnCaptions
from clip_negatives_plugins.extra_texts.reliable import ReliableTexts
from clip_negatives_plugins.extra_texts.swapped import SwappedWords
from clip_negatives_plugins.extra_texts.triplets import Triplets


@hookimpl
def clip_negatives_register_negative_samplers() -> Mapping[str, NegativeSamplerFactory]:
    """Register five samplers that add or replace captions."""
    return {
        "hard_texts": HardTexts,
        "redrawn_captions": RedrawnCaptions,
        "reliable_texts": ReliableTexts,
        "swapped_words": SwappedWords,
        "triplets": Triplets,
    }
