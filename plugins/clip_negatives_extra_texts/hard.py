"""Texts of hard pairs, as HELIP mines them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import epoch_generator, require_clusters
from clip_negatives_extra_texts.adding import FromSamples

ROWS = 1024
"""Samples whose similarities are held at a time."""


class HardTexts(FromSamples):
    """Add texts of samples that are near in image and in text, but not nearly equal in either.

    The hardness of a pair is ``cos_image * cos_text`` of the frozen features, 0 where one of the two is over `near_duplicate`;
    each epoch draws, for each sample, among its `top` hardest. Source: HELIP (Wang et al., 2023, arXiv:2305.05208) with its
    features' product, 0.98 and the 100 hardest of a random base of 3 million. There the pairs join the batch, image and all,
    and a margin loss that the public code lacks pushes them away; here their texts are further negatives of every image of
    the step, as the columns of NegCLIP (Yuksekgonul et al., 2023, arXiv:2210.01936) are. Sign: raises what is similar, by the
    frozen similarity.

    Args:
        context: what to sample for; needs clusters with features, and captions.
        of: name of a sampler without options, whose batches are taken.
        per_image: texts that are added for each sample.
        top: hardest samples that are drawn among.
        near_duplicate: cosine over which two images, or two texts, are taken for one, -1 .. 1.
        base: samples, drawn at random, that are searched: N x base x D operations.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: a value is out of its range, or there are no features or captions.
    """

    def __init__(
        self,
        context: SamplingContext,
        of: str = "in_batch",
        per_image: int = 1,
        top: int = 100,
        near_duplicate: float = 0.98,
        base: int = 100_000,
    ) -> None:
        super().__init__(context, of, per_image)
        if top < 1 or base < top or not -1 <= near_duplicate <= 1:
            raise InputError(
                "Expected top of at least 1, base of at least top and near_duplicate of -1 .. 1, got "
                f"{top}, {base} and {near_duplicate}."
            )
        clusters = require_clusters(context, "hard_texts")
        sides = [F.normalize(clusters.features_of(name, "hard_texts").float(), dim=1) for name in ("image", "text")]
        generator = torch.Generator().manual_seed(context.seed)
        searched = torch.randperm(context.n_samples, generator=generator)[:base]
        self.hardest = hardest(sides[0], sides[1], searched, top, near_duplicate)

    def choose(self, epoch: int) -> Tensor:
        """Draw among the hardest of each sample."""
        drawn = torch.rand(self.hardest.shape, generator=epoch_generator(self.context.seed, epoch)).argsort(1)
        places = torch.arange(self.texts_per_image) % self.hardest.shape[1]
        return self.hardest.gather(1, drawn[:, places])


def hardest(images: Tensor, texts: Tensor, searched: Tensor, top: int, near_duplicate: float) -> Tensor:
    """Return the hardest of the searched samples for each sample, int64, shape (N, at most `top`).

    Args:
        images: unit norm, shape (N, D).
        texts: unit norm, shape (N, D').
        searched: samples, int64, shape (M,).
        top: how many.
        near_duplicate: cosine over which a pair counts 0, as one with itself does less.

    Examples:
        >>> x = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
        >>> hardest(x, x, torch.arange(3), 1, 0.98).flatten()
        tensor([1, 0, 1])
    """
    found = []
    for rows in torch.arange(len(images)).split(ROWS):
        s, t = images[rows] @ images[searched].T, texts[rows] @ texts[searched].T
        product = (s * t).masked_fill((s > near_duplicate) | (t > near_duplicate), 0.0)
        product = product.masked_fill(rows[:, None] == searched, -torch.inf)
        found.append(searched[product.topk(min(top, max(1, len(searched) - 1)), dim=1).indices])
    return torch.cat(found)
