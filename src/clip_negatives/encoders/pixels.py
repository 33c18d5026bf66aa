"""Image encoder: principal components of thumbnails; needs no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import OptionError


def pixels(size: int = 16, dim: int = 64) -> Encoder:
    """Return an encoder: at most `dim` principal components of thumbnails of `size` x `size` pixels.

    With ``dim=0``, it learns nothing: the features are the pixels of the thumbnail, minus mid-grey.
    """
    if size < 1 or dim < 0:
        raise OptionError(f"Expected size >= 1 and dim >= 0 for 'pixels', got {size} and {dim}.")

    def encode(images: Sequence[Image.Image]) -> Tensor:
        small = [np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) for image in images]
        return torch.from_numpy(np.stack(small)).flatten(1) / 255.0

    def fit(raw: Tensor) -> Callable[[Tensor], Tensor]:
        from sklearn.decomposition import PCA

        if bool((raw == raw[0]).all()):  # there is no principal component
            return lambda features: torch.zeros(len(features), 1)
        model = PCA(min(dim, *raw.shape), random_state=0).fit(raw.numpy())
        return lambda features: torch.from_numpy(model.transform(features.numpy()).astype(np.float32))

    return Encoder(encode, fit=fit) if dim else Encoder(lambda images: encode(images) - 0.5)
