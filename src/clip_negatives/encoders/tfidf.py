"""Texts as weighted words and pieces of words, projected on their main directions; needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import DataError, OptionError


def tfidf(dim: int = 64) -> Encoder:
    """Return an encoder by TF-IDF of words and latent semantic analysis (truncated SVD).

    Args:
        dim: directions that are kept; fewer where there are fewer texts or words.
    """
    if dim < 1:
        raise OptionError(f"Expected dim of at least 1 for 'tfidf', got {dim}.")
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Any run of letters or digits is a word: catalogues are full of "v2" and "5".
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
    learned: list[TruncatedSVD] = []

    def learn(texts: Sequence[str]) -> None:
        try:
            table = words.fit_transform(texts)
        except ValueError:
            raise DataError("Expected texts with words in them for the encoder 'tfidf', got none. Use another one.") from None
        components = max(1, min(dim, min(table.shape) - 1))
        learned.append(TruncatedSVD(components, random_state=0).fit(table))

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(learned[-1].transform(words.transform(texts)).astype(np.float32))

    return Encoder(f"tfidf:dim={dim}", encode, learn=learn)
