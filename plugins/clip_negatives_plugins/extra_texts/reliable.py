"""Captions from explicit incorrect pairs, as generated in the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.host import registry
from clip_negatives.interfaces import NegativeSampler, SamplingContext
from clip_negatives.sampling import epoch_generator
from clip_negatives_plugins.extra_texts.adding import FromSamples


class ReliableTexts(FromSamples):
    """Add captions from explicit incorrect pairs, the kind of pairs that ``clip-negatives generate`` writes.

    Each epoch draws new pairs with ``incorrect_pairs`` of a sampler. With `cluster_similarity`, the image clusters and the text
    clusters of the two samples of a pair are dissimilar.

    * Source: the abstract of Tagami et al. (WSCG 2024), which generates incorrect pairs in this way.
    * Our choice: the captions of these pairs are additional columns of the loss.
    * Sign: adds dissimilar pairs, by the frozen similarity.

    Args:
        of: name of the sampler that makes the batches, without options.
        pairs: name of the sampler that draws the pairs, without options.
        per_image: captions added for each sample, at least 1; captions repeat if fewer are drawn.
        log_weight: log-weight of the added captions as negatives, below inf.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: there are no captions, or a sample has no pair.
    """

    def __init__(
        self,
        context: SamplingContext,
        of: str = "in_batch",
        pairs: str = "cluster_similarity",
        per_image: int = 1,
        log_weight: float = 0.0,
    ) -> None:
        super().__init__(context, of, per_image, log_weight)
        self.pairs: NegativeSampler = registry.create("negative_sampler", pairs, context)
        self.pairs_name = pairs

    def choose(self, epoch: int) -> Tensor:
        """Draw the pairs of an epoch."""
        n, per_image = self.context.n_samples, self.texts_per_image
        drawn = self.pairs.incorrect_pairs(per_image, epoch_generator(self.context.seed, epoch))
        order = drawn.image_index.argsort(stable=True)
        counts = drawn.image_index.bincount(minlength=n)
        if int(counts.min()) == 0:
            raise InputError(
                f"{self.pairs_name} draws no pair for {int((counts == 0).sum())} of {n} samples. Use pairs=cluster_similarity."
            )
        starts = counts.cumsum(0) - counts
        places = starts[:, None] + torch.arange(per_image) % counts[:, None]
        return drawn.text_index[order][places]
