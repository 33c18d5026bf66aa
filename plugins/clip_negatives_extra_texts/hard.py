"""Texts of hard pairs, as HELIP mines them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import epoch_generator, require_clusters
from clip_negatives_extra_texts.adding import FromSamples

HELD = 2**23
"""Similarities that are held at a time, of each modality."""


class HardTexts(FromSamples):
    """Add texts of samples that are near in image and in text, but not nearly equal in either.

    The hardness of a pair is ``cos_image * cos_text`` of the frozen features, negative cosines counting 0; pairs with one of
    the two over `near_duplicate` are left out; each epoch draws, for each sample, among its `top` hardest. Source: HELIP
    (Wang et al., 2023, arXiv:2305.05208) with its product of cosines, 0.98 and the 100 hardest of a random base of 3 million.
    There the pairs join the batch, image and all, and a margin loss that the public code lacks pushes them away; here their
    texts are further negatives of every image of the step, as the columns of NegCLIP (Yuksekgonul et al., 2023,
    arXiv:2210.01936) are. Sign: raises what is similar, by the frozen similarity.

    Args:
        context: what to sample for; needs clusters with features, and captions.
        of: name of a sampler without options, whose batches are taken.
        per_image: texts that are added for each sample.
        top: hardest samples that are drawn among.
        near_duplicate: cosine over which two images, or two texts, are taken for one, -1 .. 1.
        base: samples, drawn at random, that are searched: N x base x D operations.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: a value is out of its range, there are no features or captions, or a sample has no such pair.
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
        self.features = [clusters.features_of(name, "hard_texts") for name in ("image", "text")]
        self.top, self.near_duplicate, self.base = top, near_duplicate, base
        self._hardest: Tensor | None = None

    def choose(self, epoch: int) -> Tensor:
        """Draw among the hardest of each sample; the first time they are looked for."""
        if self._hardest is None:
            images, texts = (F.normalize(side.float(), dim=1) for side in self.features)
            generator = torch.Generator().manual_seed(self.context.seed)
            searched = torch.randperm(self.context.n_samples, generator=generator)[: self.base]
            self._hardest = hardest(images, texts, searched, self.top, self.near_duplicate)
        counts = (self._hardest >= 0).sum(1)
        if int(counts.min()) == 0:
            raise InputError(
                "Expected every sample to have another that is no near-duplicate, for hard_texts, got none for sample "
                f"{int(counts.argmin())}. Raise near_duplicate or base."
            )
        drawn = torch.rand(len(counts), generator=epoch_generator(self.context.seed, epoch))
        first = (drawn * counts).long()
        places = (first[:, None] + torch.arange(self.texts_per_image)) % counts[:, None]
        return self._hardest.gather(1, places)


def hardest(images: Tensor, texts: Tensor, searched: Tensor, top: int, near_duplicate: float) -> Tensor:
    """Return the hardest of the searched samples for each sample, hardest first, then -1; int64, shape (N, at most `top`).

    Args:
        images: unit norm, shape (N, D).
        texts: unit norm, shape (N, D').
        searched: samples, int64, shape (M,).
        top: how many.
        near_duplicate: cosine over which a pair is left out, as one with itself is.

    Examples:
        >>> x = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
        >>> hardest(x, x, torch.arange(3), 2, 0.98).tolist()
        [[1, 2], [0, 2], [1, 0]]
    """
    found = []
    for rows in torch.arange(len(images)).split(max(1, HELD // len(searched))):
        s, t = images[rows] @ images[searched].T, texts[rows] @ texts[searched].T
        excluded = (s > near_duplicate) | (t > near_duplicate) | (rows[:, None] == searched)
        product = (s.clamp_(min=0.0) * t.clamp_(min=0.0)).masked_fill_(excluded, -torch.inf)
        values, places = product.topk(min(top, len(searched)), dim=1)
        found.append(searched[places].masked_fill(values == -torch.inf, -1))
    return torch.cat(found)
