"""Sums over the extra texts or the extra images of each anchor, by any backend."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from clip_negatives.losses.kernels.pairs import Extras, Inputs, Pairs
from clip_negatives.losses.kernels.sums import PairSums, joined_sums
from clip_negatives.terms import LossTerms


def add(
    sums: Tensor, inputs: Inputs, extras: Extras | None, pairs: Pairs, compute: Callable[[Inputs, Pairs], PairSums]
) -> Tensor:
    """Return the sums of the rows of `inputs` with the extras as additional columns.

    Rows and columns with equal ids form a group, so they are not negatives. Positive extras are computed in blocks with one
    extra for each sample: there, the positive of a row, which is not a negative either, is the extra of its own sample.

    Args:
        sums: the sums over the samples, shape (8, B).
        inputs: features of the rows and of the samples of all processes.
        extras: the extras; None returns `sums`.
        pairs: the pairs of rows and samples; groups of samples replace the ids of positive extras.
        compute: returns the sums of a block.
    """
    if extras is None:
        return sums
    grouped = extras.positive and pairs.rows.groups is not None
    row_ids = pairs.rows.groups if grouped else extras.own_ids
    # Without positives, the offset is beyond the last column.
    n_blocks, offset = (len(extras.features) // len(inputs.y), pairs.offset) if extras.positive else (1, len(extras.features))
    for place in range(n_blocks):
        block = extras.features[place::n_blocks].contiguous()
        ids = None if extras.ids is None else extras.ids[place::n_blocks].contiguous()
        rows = LossTerms(groups=row_ids, hardness=pairs.hardness)
        columns = LossTerms(groups=pairs.columns.groups if grouped else ids)
        requested = pairs.importance, pairs.count, pairs.mixed_signs
        block_pairs = Pairs(rows, columns, pairs.row_limits, None, offset, False, *requested)
        more = compute(inputs._replace(y=block), block_pairs).rows
        sums = joined_sums(sums, more, log_weight=extras.log_weight, mates=grouped)
    return sums


def positive_logits(inputs: Inputs, extras: Extras | None, offset: int) -> Tensor | None:
    """Return the logits of each row with the K positive extras of its sample, shape (B, K), or None without such extras.

    They are in full precision, like the logits of the own pairs.
    """
    if extras is None or not extras.positive:
        return None
    x, dtype = inputs.x, inputs.precision()
    own = extras.features.view(len(inputs.y), -1, x.shape[1])[offset : offset + len(x)]
    logits = inputs.scale.to(dtype).flatten() * (x.to(dtype)[:, None] * own.to(dtype)).sum(2)
    return logits if inputs.bias is None else logits + inputs.bias.to(dtype).flatten()
