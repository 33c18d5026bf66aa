"""Texts of explicit incorrect pairs, which the paper generates."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives import registry
from clip_negatives.errors import InputError
from clip_negatives.interfaces import NegativeSampler, SamplingContext
from clip_negatives.sampling import epoch_generator
from clip_negatives_extra_texts.adding import FromSamples


class ReliableTexts(FromSamples):
    """Add the texts of explicit incorrect pairs: those that ``clip-negatives generate`` writes, trained on.

    Each epoch draws pairs anew by the ``incorrect_pairs`` of a sampler; with `cluster_similarity`, whose exchange of texts is
    reliable by the similarity between the clusters of both images and both texts. Source: so incorrect pairs are generated in
    the abstract of Tagami et al. (WSCG 2024); that they are further columns of the loss is our choice. Sign: adds what is
    different, by the frozen similarity.

    Args:
        context: what to sample for; needs clusters and captions.
        of: name of a sampler without options, whose batches are taken.
        pairs: name of a sampler without options, which draws the pairs.
        per_image: texts that are added for each sample; drawn ones repeat where there are fewer.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: `per_image` is less than 1, there are no captions, or a sample has no pair.
    """

    def __init__(
        self, context: SamplingContext, of: str = "in_batch", pairs: str = "cluster_similarity", per_image: int = 1
    ) -> None:
        super().__init__(context, of, per_image)
        self.pairs: NegativeSampler = registry.create("negative_sampler", pairs, context)
        self.drawn_by = pairs

    def choose(self, epoch: int) -> Tensor:
        """Draw the pairs of an epoch."""
        n, each = self.context.n_samples, self.texts_per_image
        drawn = self.pairs.incorrect_pairs(each, epoch_generator(self.context.seed, epoch))
        order = drawn.image_index.argsort(stable=True)
        counts = drawn.image_index.bincount(minlength=n)
        if int(counts.min()) == 0:
            raise InputError(
                f"Expected pairs of every sample from {self.drawn_by}, got none for {int((counts == 0).sum())} of {n}. "
                "Take pairs=cluster_similarity."
            )
        starts = counts.cumsum(0) - counts
        places = starts[:, None] + torch.arange(each) % counts[:, None]
        return drawn.text_index[order][places]
