"""open_clip: train through its own loop, with our batches and our loss.

This package, with `clip_negatives.encoders.open_clip`, is the only place that imports open_clip or open_clip_train.
"""

from clip_negatives.integrations.open_clip.launch import check, train
from clip_negatives.integrations.open_clip.train_options import TrainOptions

__all__ = ["TrainOptions", "check", "train"]
