"""Train with open_clip's own loop, the batches of a negative sampler, and our loss.

Only this package and `clip_negatives.encoders.open_clip` import open_clip or open_clip_train. The module `guest` lists all
changes that a run makes outside this package, and undoes them.
"""

from clip_negatives.integrations.open_clip.launch import check, provenance, train
from clip_negatives.integrations.open_clip.train_options import TrainOptions

__all__ = ["TrainOptions", "check", "provenance", "train"]
