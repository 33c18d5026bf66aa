"""Rank@k of retrieval, in chunks of queries: the whole queries x gallery matrix is never in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_negatives.errors import InputError

CHUNK = 1024  # number of queries compared with the whole gallery at a time


def rank_at_k(
    query_features: Tensor,
    gallery_features: Tensor,
    query_groups: Tensor,
    gallery_groups: Tensor,
    top_k: Sequence[int] = (1, 5, 10),
    *,
    chunk_size: int = CHUNK,
) -> Tensor:
    """Return Rank@k: the share of queries with an entry of their own group among the k most similar gallery entries.

    Without ties, the result equals:

        nearest = (query_features @ gallery_features.T).topk(k).indices
        (gallery_groups[nearest] == query_groups[:, None]).any(dim=1).float().mean()

    Ties count against the model: a wrong entry as similar as the best correct entry ranks before it. A model that maps
    all inputs to one point, or to NaN, scores 0.

    Args:
        query_features: float, shape (Q, D).
        gallery_features: float, shape (G, D).
        query_groups: int64, shape (Q,); each group occurs in the gallery.
        gallery_groups: int64, shape (G,).
        top_k: values of k, each at least 1.
        chunk_size: queries compared at a time; memory is chunk_size x G.

    Returns:
        float32, shape (len(top_k),), 0 .. 1.

    Raises:
        InputError: the shapes do not fit, a k is less than 1, or the gallery lacks the group of a query.

    Examples:
        >>> rank_at_k(torch.eye(3), torch.eye(3), torch.arange(3), torch.tensor([0, 2, 1]), (1, 3))
        tensor([0.3333, 1.0000])
    """
    shapes = tuple(query_features.shape), tuple(gallery_features.shape)
    if query_features.ndim != 2 or shapes[0][1:] != shapes[1][1:] or 0 in shapes[0]:
        raise InputError(f"Expected query and gallery features of shapes (Q, D) and (G, D), got {shapes[0]} and {shapes[1]}.")
    lengths = len(query_groups), len(gallery_groups)
    if lengths != (len(query_features), len(gallery_features)):
        raise InputError(
            f"Expected one group for each query and each gallery entry ({len(query_features)} and {len(gallery_features)}), "
            f"got {lengths[0]} and {lengths[1]}."
        )
    if min(top_k, default=0) < 1:
        raise InputError(f"Expected every k to be at least 1, got {tuple(top_k)}.")
    rank, _ = first_correct(query_features, gallery_features, query_groups, gallery_groups, chunk_size=chunk_size)
    return torch.stack([(rank <= k).float().mean() for k in top_k])


def first_correct(
    query_features: Tensor, gallery_features: Tensor, query_groups: Tensor, gallery_groups: Tensor, *, chunk_size: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return the rank of the first correct entry of each query, and the top entry.

    Arguments and errors are those of `rank_at_k`. Ties count against the model: if entries tie for the first rank, the top
    entry is a wrong one.

    Returns:
        Ranks from 1, and positions in the gallery, both int64, shape (Q,).

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
            raise InputError("A query has no gallery entry of its group. Remove the query, or complete the gallery.")
        best, place = similarity.masked_fill(~own, -torch.inf).max(dim=1, keepdim=True)
        # Not ">=": with NaN, the own group must not rank first.
        rank = (~(similarity < best) & ~own).sum(dim=1) + 1
        ranks.append(rank)
        tops.append(torch.where(rank == 1, place[:, 0], similarity.masked_fill(own, -torch.inf).argmax(dim=1)))
    return torch.cat(ranks), torch.cat(tops)


def chance_rank_at_k(query_groups: Tensor, gallery_groups: Tensor, k: int) -> float:
    """Return the Rank@k of random features: the mean over queries of 1 - C(G - m, k) / C(G, k).

    G is the size of the gallery, m the number of its entries in the query's group.

    Args:
        query_groups: int64, shape (Q,); a group that the gallery lacks has m = 0.
        gallery_groups: int64, shape (G,).
        k: at least 1; values above G count as G.

    Raises:
        InputError: k is less than 1.

    Examples:
        >>> round(chance_rank_at_k(torch.arange(10), torch.arange(10), 1), 4)
        0.1
    """
    if k < 1:
        raise InputError(f"Expected k of at least 1, got {k}.")
    n = len(gallery_groups)
    groups, sizes = torch.unique(gallery_groups, return_counts=True)
    place = torch.searchsorted(groups, query_groups).clamp(max=len(groups) - 1)
    own = torch.where(groups[place] == query_groups, sizes[place], 0).double()
    missed = torch.ones_like(own)
    for drawn in range(min(k, n)):
        missed = missed * ((n - own - drawn).clamp(min=0) / (n - drawn))
    return float((1 - missed).mean())
