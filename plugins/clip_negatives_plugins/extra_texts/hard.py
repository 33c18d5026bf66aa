"""Captions from hard pairs, mined as in HELIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import epoch_generator, require_clusters
from clip_negatives_plugins.extra_texts.adding import FromSamples

SIMILARITIES_AT_ONCE = 2**23
"""Entries of the similarity matrix of each modality per block."""


class HardTexts(FromSamples):
    """Add captions of samples with similar images and texts that are not near-duplicates.

    The hardness of a pair is ``cos_image * cos_text`` of the frozen features; negative cosines count as 0. Pairs with an image
    or text cosine above `near_duplicate` are excluded. Each epoch draws from the `top` hardest pairs of each sample.

    * Source: HELIP (Wang et al., 2023, arXiv:2305.05208): the product of cosines, the limit 0.98, and the 100 hardest pairs
      from a random base of 3 million. HELIP adds whole pairs to the batch, with a margin loss that its public code lacks.
    * Our choice: only captions are added, as negatives of every image of the step, like the added columns of NegCLIP
      (Yuksekgonul et al., 2023, arXiv:2210.01936).
    * Sign: raises similar pairs, by the frozen similarity.

    Args:
        of: name of the sampler that makes the batches, without options.
        per_image: captions added for each sample, at least 1.
        top: number of hardest pairs of a sample to draw from, at least 1.
        near_duplicate: two images, or two texts, with a higher cosine are near-duplicates, -1 .. 1.
        base: number of random samples that are searched, at least `top`; costs N x base x D operations once.
        log_weight: log-weight of the added captions as negatives, below inf.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: there are no features or captions, or a sample has no hard pair.
    """

    def __init__(
        self,
        context: SamplingContext,
        of: str = "in_batch",
        per_image: int = 1,
        top: int = 100,
        near_duplicate: float = 0.98,
        base: int = 100_000,
        log_weight: float = 0.0,
    ) -> None:
        super().__init__(context, of, per_image, log_weight)
        check_number("top", top, at_least=1)
        check_number("base", base, at_least=top)
        check_number("near_duplicate", near_duplicate, at_least=-1, at_most=1)
        clusters = require_clusters(context, "hard_texts")
        self.features = [clusters.features_of(name, "hard_texts") for name in ("image", "text")]
        self.top, self.near_duplicate, self.base = top, near_duplicate, base
        self._hardest: Tensor | None = None

    def choose(self, epoch: int) -> Tensor:
        """Draw from the hardest pairs of each sample; the first call searches for them."""
        if self._hardest is None:
            images, texts = (F.normalize(side.float(), dim=1) for side in self.features)
            generator = torch.Generator().manual_seed(self.context.seed)
            searched = torch.randperm(self.context.n_samples, generator=generator)[: self.base]
            self._hardest = hardest(images, texts, searched, self.top, self.near_duplicate)
        counts = (self._hardest >= 0).sum(1)
        if int(counts.min()) == 0:
            raise InputError(
                f"Sample {int(counts.argmin())} has only near-duplicates among the searched samples. "
                "Raise near_duplicate or base of hard_texts."
            )
        drawn = torch.rand(len(counts), generator=epoch_generator(self.context.seed, epoch))
        first = (drawn * counts).long()
        places = (first[:, None] + torch.arange(self.texts_per_image)) % counts[:, None]
        return self._hardest.gather(1, places)


def hardest(images: Tensor, texts: Tensor, searched: Tensor, top: int, near_duplicate: float) -> Tensor:
    """Return the hardest partners of each sample, hardest first, padded with -1; int64, shape (N, min(top, M)).

    Args:
        images: unit norm, shape (N, D).
        texts: unit norm, shape (N, D').
        searched: candidate partners, int64, shape (M,).
        top: number of partners.
        near_duplicate: pairs with a higher cosine are excluded.

    Examples:
        >>> x = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
        >>> hardest(x, x, torch.arange(3), 2, 0.98).tolist()
        [[1, 2], [0, 2], [1, 0]]
    """
    partners = []
    for rows in torch.arange(len(images)).split(max(1, SIMILARITIES_AT_ONCE // len(searched))):
        s, t = images[rows] @ images[searched].T, texts[rows] @ texts[searched].T
        excluded = (s > near_duplicate) | (t > near_duplicate) | (rows[:, None] == searched)
        product = (s.clamp_(min=0.0) * t.clamp_(min=0.0)).masked_fill_(excluded, -torch.inf)
        values, places = product.topk(min(top, len(searched)), dim=1)
        partners.append(searched[places].masked_fill(values == -torch.inf, -1))
    return torch.cat(partners)
