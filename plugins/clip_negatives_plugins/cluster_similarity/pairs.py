"""Random draws of explicit reliable pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import IncorrectPairs
from clip_negatives_plugins.cluster_similarity.reliable import ReliableExchanges

ROUNDS = 16
"""Rounds of random draws. For an image that then still lacks texts, all reliable texts are listed."""


def draw_pairs(reliable: ReliableExchanges, images: Tensor, per_image: int, generator: torch.Generator) -> IncorrectPairs:
    """Draw up to `per_image` different reliable texts for each image, uniformly.

    An image with fewer reliable texts gets all of them. Memory grows with the number of images.

    Args:
        reliable: the reliable exchanges of the data set, N samples.
        images: sample ids, all different, int64, shape (M,).
        per_image: texts of each image, at least 1.
        generator: source of all randomness.

    Raises:
        InputError: `per_image` is less than 1.
    """
    n, m = len(reliable), images.numel()
    if per_image < 1:
        raise InputError(f"per_image must be at least 1, got {per_image}.")
    per_image = min(per_image, max(1, n - 1))
    kept = torch.empty(0, dtype=torch.int64)  # codes: position in `images` * n + text
    incomplete = torch.arange(m)
    for _ in range(ROUNDS):
        places = incomplete.repeat_interleave(2 * per_image)
        texts = torch.randint(n, places.shape, generator=generator)
        accepted = reliable.between(images[places], texts)
        kept = _first_of_each(torch.cat([kept, places[accepted] * n + texts[accepted]]), per_image, n)
        counts = torch.bincount(kept // n, minlength=m)
        incomplete = (counts < per_image).nonzero().flatten()
        if incomplete.numel() == 0:
            break
    listed = [torch.empty(0, dtype=torch.int64)]
    for place in incomplete.tolist():
        texts = reliable.texts_of(images[place])
        order = torch.randperm(texts.numel(), generator=generator)[:per_image]
        listed.append(place * n + texts[order])
    kept = torch.cat([kept[~torch.isin(kept // n, incomplete)], *listed]).sort().values
    return IncorrectPairs(images[kept // n], kept % n)


def _first_of_each(codes: Tensor, per_image: int, n: int) -> Tensor:
    """Return the first `per_image` distinct codes ``image * n + text`` of each image, in the order drawn."""
    distinct, inverse = codes.unique(return_inverse=True)
    first = torch.full((distinct.numel(),), codes.numel()).scatter_reduce_(
        0, inverse, torch.arange(codes.numel()), "amin", include_self=True
    )
    drawn = codes[first.sort().values]
    by_image = drawn[(drawn // n).argsort(stable=True)]
    image = by_image // n
    rank = torch.arange(by_image.numel()) - torch.searchsorted(image, image)
    return by_image[rank < per_image]
