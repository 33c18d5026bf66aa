"""Images as small pictures, projected on their principal components; needs no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import OptionError


def pixels(size: int = 16, dim: int = 64) -> Encoder:
    """Return an encoder of thumbnails, as differences from the mean thumbnail.

    An image that is the mean thumbnail itself has the zero vector, which is similar to nothing.

    Args:
        size: side of the thumbnail in pixels.
        dim: principal components that are kept; fewer where there are fewer samples or pixels.
    """
    if size < 1 or dim < 1:
        raise OptionError(f"Expected size and dim of at least 1 for 'pixels', got {size} and {dim}.")

    def encode(images: Sequence[Image.Image]) -> Tensor:
        small = [np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) for image in images]
        return torch.from_numpy(np.stack(small)).flatten(1) / 255.0

    def fit(raw: Tensor) -> Callable[[Tensor], Tensor]:
        from sklearn.decomposition import PCA

        if bool((raw == raw[0]).all()):  # no direction to speak of
            return lambda some: torch.zeros(len(some), 1)
        model = PCA(min(dim, *raw.shape), random_state=0).fit(raw.numpy())
        return lambda some: torch.from_numpy(model.transform(some.numpy()).astype(np.float32))

    return Encoder(encode, fit=fit)
