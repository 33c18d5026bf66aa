"""Images as small pictures, projected on their principal components; needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import OptionError

LEARNED_FROM = 20_000
"""Samples, evenly spaced over the data, that the principal components are learned from."""


def pixels(size: int = 16, dim: int = 64) -> Encoder:
    """Return an encoder of thumbnails.

    Args:
        size: side of the thumbnail in pixels.
        dim: principal components that are kept; fewer where there are fewer samples or pixels.
    """
    if size < 1 or dim < 1:
        raise OptionError(f"Expected size and dim of at least 1 for 'pixels', got {size} and {dim}.")

    def encode(images: Sequence[Image.Image]) -> Tensor:
        small = [np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) for image in images]
        return torch.from_numpy(np.stack(small)).flatten(1) / 255.0

    def finish(raw: Tensor) -> Tensor:
        from sklearn.decomposition import PCA

        learned_from = raw[:: max(1, len(raw) // LEARNED_FROM)].numpy()
        components = min(dim, *learned_from.shape)
        model = PCA(components, random_state=0).fit(learned_from)
        return torch.from_numpy(model.transform(raw.numpy()).astype(np.float32))

    return Encoder(f"pixels:size={size},dim={dim}", encode, finish=finish)
