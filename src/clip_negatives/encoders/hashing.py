"""Text encoder: hashed character n-grams; needs no weights and learns nothing from the texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import OptionError


def hashing(dim: int = 512) -> Encoder:
    """Return an encoder by signed feature hashing (Weinberger et al., 2009) of the character n-grams of `tfidf`.

    Unlike `tfidf`, it gives a text the same features in any data set, so parts of the data can be encoded independently.
    """
    if dim < 1:
        raise OptionError(f"Expected dim >= 1 for 'hashing', got {dim}.")
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(n_features=dim, analyzer="char_wb", ngram_range=(2, 3), dtype=np.float32)

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(vectorizer.transform(texts).toarray())

    return Encoder(encode)
