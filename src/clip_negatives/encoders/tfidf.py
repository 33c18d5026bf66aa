"""Texts as weighted pieces of words, projected on their main directions; needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import DataError, OptionError


def tfidf(dim: int = 64) -> Encoder:
    """Return an encoder by TF-IDF of pieces of words and latent semantic analysis (truncated SVD).

    Pieces of two and three characters, our choice: they find the near-duplicates of a catalogue better than whole
    words do ("grinning", "grin"; "11LC010", "11LC160"), and need no spaces between words, which Chinese and Japanese
    lack. A text without a known piece has the zero vector, which is similar to nothing.

    Args:
        dim: directions that are kept; fewer where there are fewer texts or pieces.
    """
    if dim < 1:
        raise OptionError(f"Expected dim of at least 1 for 'tfidf', got {dim}.")
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3), sublinear_tf=True, dtype=np.float32)
    learned: list[TruncatedSVD] = []

    def learn(texts: Sequence[str]) -> None:
        try:
            table = pieces.fit_transform(texts)
        except ValueError:
            raise DataError("Expected texts with words in them for the encoder 'tfidf', got none. Use another one.") from None
        components = max(1, min(dim, min(table.shape) - 1))
        with np.errstate(invalid="ignore"):  # the share of variance explained, which texts without any do not have
            learned.append(TruncatedSVD(components, random_state=0).fit(table))

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(learned[-1].transform(pieces.transform(texts)).astype(np.float32))

    return Encoder(encode, learn=learn)
