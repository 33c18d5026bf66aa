"""Rank@k of retrieval, never with a queries x gallery matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from clip_negatives.errors import InputError

CHUNK = 1024
"""Queries that are compared with the whole gallery at a time."""


def rank_at_k(
    query_features: Tensor,
    gallery_features: Tensor,
    query_groups: Tensor,
    gallery_groups: Tensor,
    top_k: Sequence[int] = (1, 5, 10),
    *,
    chunk_size: int = CHUNK,
) -> Tensor:
    """Compute Rank@k: the share of queries with an entry of their own group among the k most similar of the gallery.

    Equals, where no similarities tie::

        nearest = (query_features @ gallery_features.T).topk(k).indices
        (gallery_groups[nearest] == query_groups[:, None]).any(dim=1).float().mean()

    Ties are pessimistic: entries as similar as the best of the own group count as ranked before it, so a model that
    maps everything to one point, or to NaN, scores 0, not 1. Memory is chunk_size x gallery.

    Args:
        query_features: float, shape (Q, D).
        gallery_features: float, shape (G, D).
        query_groups: int64, shape (Q,); each occurs in the gallery.
        gallery_groups: int64, shape (G,).
        top_k: the values of k, each at least 1.
        chunk_size: queries compared at a time.

    Returns:
        float32, one value within 0 .. 1 for each k.

    Raises:
        InputError: shapes do not fit, k is less than 1, or a query has no entry of its group.

    Examples:
        >>> rank_at_k(torch.eye(3), torch.eye(3), torch.arange(3), torch.tensor([0, 2, 1]), (1, 3))
        tensor([0.3333, 1.0000])
    """
    if query_features.ndim != 2 or query_features.shape[1:] != gallery_features.shape[1:] or 0 in query_features.shape:
        raise InputError(
            f"Expected query and gallery features of shapes (Q, D) and (G, D), got {tuple(query_features.shape)} and "
            f"{tuple(gallery_features.shape)}."
        )
    if len(query_groups) != len(query_features) or len(gallery_groups) != len(gallery_features):
        raise InputError("Expected one group for each query and each gallery entry, got another number.")
    if min(top_k, default=0) < 1:
        raise InputError(f"Expected every k to be at least 1, got {tuple(top_k)}.")
    rank, _ = first_correct(query_features, gallery_features, query_groups, gallery_groups, chunk_size=chunk_size)
    return torch.stack([(rank <= k).float().mean() for k in top_k])


def first_correct(
    query_features: Tensor,
    gallery_features: Tensor,
    query_groups: Tensor,
    gallery_groups: Tensor,
    *,
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Return for each query the rank of the first entry of its own group, and the entry that stands first.

    The arguments, the ties and the errors are those of `rank_at_k`. Where entries tie for the first place, one of another
    group stands there.

    Returns:
        Ranks from 1 on, and places in the gallery, both int64, shape (Q,).

    Examples:
        >>> first_correct(torch.eye(3), torch.eye(3), torch.arange(3), torch.tensor([0, 2, 1]))
        (tensor([1, 3, 3]), tensor([0, 1, 2]))
    """
    ranks, tops = [], []
    for start in range(0, len(query_groups), chunk_size):
        part = slice(start, start + chunk_size)
        similarity = query_features[part] @ gallery_features.T
        own = query_groups[part, None] == gallery_groups[None, :]
        if not bool(own.any(dim=1).all()):
            raise InputError("Expected every query to have an entry of its group in the gallery, got one without.")
        best, place = similarity.masked_fill(~own, -torch.inf).max(dim=1, keepdim=True)
        # Not "at least as similar": a similarity that is not a number must not put the own group first.
        rank = (~(similarity < best) & ~own).sum(dim=1) + 1
        ranks.append(rank)
        tops.append(torch.where(rank == 1, place[:, 0], similarity.masked_fill(own, -torch.inf).argmax(dim=1)))
    return torch.cat(ranks), torch.cat(tops)


def chance_rank_at_k(query_groups: Tensor, gallery_groups: Tensor, k: int) -> float:
    """Return the Rank@k of random features: the mean over queries of 1 - C(G - m, k) / C(G, k).

    m is the number of entries of the query's group among the G of the gallery.

    Args:
        query_groups: int64, shape (Q,); a group that the gallery lacks is never found.
        gallery_groups: int64, shape (G,).
        k: how many of the gallery are drawn without putting back, at least 1; all of it where k is over G.

    Raises:
        InputError: k is less than 1.

    Examples:
        >>> round(chance_rank_at_k(torch.arange(10), torch.arange(10), 1), 4)
        0.1
    """
    if k < 1:
        raise InputError(f"Expected k of at least 1, got {k}.")
    n = len(gallery_groups)
    found, sizes = torch.unique(gallery_groups, return_counts=True)
    place = torch.searchsorted(found, query_groups).clamp(max=len(found) - 1)
    own = torch.where(found[place] == query_groups, sizes[place], 0).double()
    missed = torch.ones_like(own)
    for drawn in range(min(k, n)):
        missed = missed * ((n - own - drawn).clamp(min=0) / (n - drawn))
    return float((1 - missed).mean())


class RankAtK(Metric):
    """Collect features and compute `rank_at_k` in both directions.

    Args:
        top_k: the values of k.
        chunk_size: queries compared at a time; a queries x gallery matrix is never held.

    Examples:
        >>> metric = RankAtK(top_k=(1,))
        >>> metric.update(torch.eye(3), torch.eye(3), torch.arange(3))
        >>> metric.compute()
        {'text_to_image_rank_1': tensor(1.), 'image_to_text_rank_1': tensor(1.)}
    """

    full_state_update = False
    image_features: list[Tensor]
    text_features: list[Tensor]
    groups: list[Tensor]

    def __init__(self, top_k: Sequence[int] = (1, 5, 10), chunk_size: int = CHUNK, **options: Any) -> None:
        super().__init__(**options)
        self.top_k = tuple(top_k)
        self.chunk_size = chunk_size
        for name in ("image_features", "text_features", "groups"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, image_features: Tensor, text_features: Tensor, groups: Tensor) -> None:
        """Take pairs: image i and text i show group ``groups[i]``; features of shape (n, D), groups int64 (n,)."""
        self.image_features.append(image_features.detach())  # a graph would keep the whole model's activations
        self.text_features.append(text_features.detach())
        self.groups.append(groups)

    def compute(self) -> dict[str, Tensor]:
        """Return ``{direction}_rank_{k}`` for both directions and every k."""
        image, text = dim_zero_cat(self.image_features), dim_zero_cat(self.text_features)
        groups = dim_zero_cat(self.groups)
        found = {}
        for direction, queries, gallery in (("text_to_image", text, image), ("image_to_text", image, text)):
            values = rank_at_k(queries, gallery, groups, groups, self.top_k, chunk_size=self.chunk_size)
            found.update({f"{direction}_rank_{k}": value for k, value in zip(self.top_k, values, strict=True)})
        return found
