"""The weighting `distilled`: soft targets from the moving average of the model, or from another model."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.anchors import Anchors
from clip_negatives.function_plugins import weighting
from clip_negatives.host.option_checks import check_number


@weighting(returns="targets", requires_clusters=False)
def distilled(anchors: Anchors, *, mass: float = 0.4) -> Tensor:
    """Give a part of the target to the pairs that a teacher finds similar.

    With t the teacher's cosines and `scale` the live factor of the logits:

        T = (1 - mass) I + mass softmax(scale t)

    The teacher's features have no gradient. The training command makes the teacher with ``--ema 0.995`` or ``--teacher
    CHECKPOINT``; in your own loop, pass ``samples.with_teacher(image_features, text_features)``.

    * Source: momentum distillation of ALBEF (Li et al., 2021, arXiv:2107.07651), whose mass is 0.4 and whose average has a
      decay of 0.995. ALBEF raises the mass from 0 in the first epoch, and also has a queue and other losses.
    * Our choice: no queue and no warm-up.
    * Sign: attracts pairs that the teacher finds similar.

    Args:
        anchors: anchors of a step.
        mass: share of the target that the teacher sets, 0 .. 1.

    Raises:
        InputError: there is no teacher, or `mass` is out of range.
    """
    check_number("mass", mass, at_least=0, at_most=1)
    own, others = anchors.step.taught(anchors.modality), anchors.step.taught(anchors.other, candidates=True)
    seen = torch.softmax(anchors.scale.detach() * (own @ others.T).to(anchors.logits.dtype), dim=1)
    return (1 - mass) * (~anchors.negatives).to(seen) + mass * seen
