"""Draw explicit reliable pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import IncorrectPairs
from clip_negatives_cluster_similarity.reliable import ReliableExchanges

ROUNDS = 16
"""Rounds of drawing and keeping what is reliable, before the reliable texts of the images that lack some are listed."""


def draw_pairs(reliable: ReliableExchanges, images: Tensor, per_image: int, generator: torch.Generator) -> IncorrectPairs:
    """Draw for each of `images` up to `per_image` different texts whose exchange is reliable, uniformly among them.

    No image has more than N - 1, however many are asked for. Memory grows with the images; where one has few reliable texts,
    all N are looked through, a part at a time.

    Args:
        reliable: which exchanges are reliable.
        images: samples, each once, int64, shape (M,).
        per_image: texts of each.
        generator: all randomness.

    Raises:
        InputError: `per_image` is less than 1.
    """
    n, m = reliable.image_labels.numel(), images.numel()
    if per_image < 1:
        raise InputError(f"Expected at least 1 pair per image, got {per_image}.")
    per_image = min(per_image, max(1, n - 1))
    kept = torch.empty(0, dtype=torch.int64)  # place among `images` * n + text
    wanting = torch.arange(m)
    for _ in range(ROUNDS):
        places = wanting.repeat_interleave(2 * per_image)
        texts = torch.randint(n, places.shape, generator=generator)
        good = reliable.between(images[places], texts)
        kept = _first_of_each(torch.cat([kept, places[good] * n + texts[good]]), per_image, n)
        have = torch.bincount(kept // n, minlength=m)
        wanting = (have < per_image).nonzero().flatten()
        if wanting.numel() == 0:
            break
    listed = [torch.empty(0, dtype=torch.int64)]
    for place in wanting.tolist():
        # Few texts are reliable for these: shuffle the whole list, which draws without replacement.
        texts = reliable.texts_of(images[place])
        order = torch.randperm(texts.numel(), generator=generator)[:per_image]
        listed.append(place * n + texts[order])
    kept = torch.cat([kept[~torch.isin(kept // n, wanting)], *listed]).sort().values
    return IncorrectPairs(images[kept // n], kept % n)


def _first_of_each(codes: Tensor, per_image: int, n: int) -> Tensor:
    """Return of the codes ``image * n + text`` the first `per_image` different ones of each image, in the order drawn."""
    distinct, inverse = codes.unique(return_inverse=True)
    first = torch.full((distinct.numel(),), codes.numel()).scatter_reduce_(
        0, inverse, torch.arange(codes.numel()), "amin", include_self=True
    )
    drawn = codes[first.sort().values]
    by_image = drawn[(drawn // n).argsort(stable=True)]
    image = by_image // n
    starts = torch.searchsorted(image, image)
    rank = torch.arange(by_image.numel()) - starts
    return by_image[rank < per_image]
