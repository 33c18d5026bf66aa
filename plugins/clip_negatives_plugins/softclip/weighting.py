"""Soft targets from the live similarity within a modality."""

from __future__ import annotations

from torch import Tensor

from clip_negatives import weighting
from clip_negatives.anchors import Anchors
from clip_negatives.host.option_checks import check_number


@weighting(returns="targets", requires_clusters=False)
def softclip(anchors: Anchors, *, mass: float = 0.2, temperature: float = 0.1) -> Tensor:
    """Give a part of the target to samples that the model finds similar within the modality of the anchor.

    ``T = (1 - mass) I + mass softmax_j(<f_i, f_j> / temperature)``, where f are the live features of the anchor's modality,
    without gradients: images share the targets of images by images, texts those of texts by texts.

    * Source: SoftCLIP (Gao et al., 2023, arXiv:2303.17561): targets softened by the similarity within a modality. We read the
      abstract only. The paper takes a fine-grained similarity, not that of whole images and captions, and adds a loss among
      the negatives alone, which is not here.
    * Our choice: the live features that are trained; the formula of the mixture; the default values.
    * Sign: attracts similar pairs, by the live similarity.

    Args:
        anchors: anchors of a step.
        mass: part of the target that the similarity distributes, the own pair included, 0 .. 1; 0 is plain InfoNCE.
        temperature: above 0; near 0 the target is the own pair and its duplicates.
    """
    check_number("mass", mass, at_least=0, at_most=1)
    check_number("temperature", temperature, above=0)
    cosines = (anchors.features.detach() @ anchors.peers.detach().T).to(anchors.cosines)
    own = (~anchors.negatives).to(cosines)
    return (1 - mass) * own + mass * (cosines / temperature).softmax(1)
