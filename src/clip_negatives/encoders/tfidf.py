"""Text encoder: TF-IDF of character n-grams, reduced by latent semantic analysis; needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import DataError, OptionError


def tfidf(dim: int = 64) -> Encoder:
    """Return an encoder by TF-IDF of character n-grams and truncated SVD; a text without a known n-gram is the zero vector.

    The n-grams have two and three characters (our choice): they match the near-duplicates of a catalogue better than words
    ("grinning", "grin"; "11LC010", "11LC160"), and need no spaces between words, which Chinese and Japanese lack.
    """
    if dim < 1:
        raise OptionError(f"Expected dim >= 1 for 'tfidf', got {dim}.")
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3), sublinear_tf=True, dtype=np.float32)
    learned: list[TruncatedSVD] = []

    def learn(texts: Sequence[str]) -> None:
        try:
            table = vectorizer.fit_transform(texts)
        except ValueError:
            raise DataError("The texts have no words, which the encoder 'tfidf' needs. Use another text encoder.") from None
        components = max(1, min(dim, min(table.shape) - 1))
        with np.errstate(invalid="ignore"):  # the share of explained variance is 0 / 0 for equal texts
            learned.append(TruncatedSVD(components, random_state=0).fit(table))

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(learned[-1].transform(vectorizer.transform(texts)).astype(np.float32))

    return Encoder(encode, learn=learn)
