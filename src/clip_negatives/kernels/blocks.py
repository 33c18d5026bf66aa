"""The matrix of all pairs, some rows at a time: what the chunked backend sums, and in which memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.kernels import log_weights
from clip_negatives.kernels.pairs import IMPORTANCE, MATES, NEGATIVES, Pairs, sum_dtype

BLOCK_BYTES = 16 * 2**20
"""Size of a block of logits if no chunk size is given: large enough for full speed, small enough not to be noticed."""


class Term(NamedTuple):
    """Hold the values of a block that one of the logarithmic sums is over, until the next is asked for.

    Attributes:
        sum: which.
        slope: derivative of the values by the logits.
        rows: values, -inf where a pair does not belong to the sum of its row; may be overwritten.
        columns: the same for the sums of columns; `rows` itself where they do not differ.
    """

    sum: int
    slope: float
    rows: Tensor
    columns: Tensor


class Blocks:
    """Walk through the matrix of all pairs some rows at a time, in the same memory.

    Fresh memory has its pages mapped in, which costs more than the look-ups. Blocks lie column by column, as the look-up of
    weights is quickest so.
    """

    logits: Tensor
    scratch: Tensor

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, chunk: int | None) -> None:
        self.pairs, self.dtype = pairs, sum_dtype(x, y)
        self.x, self.columns = x, y.to(self.dtype)
        self.scale, self.bias = scale.to(self.dtype), None if bias is None else bias.to(self.dtype)
        self.chunk = chunk or max(16, BLOCK_BYTES // (torch.finfo(self.dtype).bits // 8 * len(y)))
        # Several sums over one block need the logits more than once.
        self.keeps_logits = pairs.rows.groups is not None or bool(pairs.hardness)
        limited = pairs.rows.limits is not None or pairs.columns.limits is not None
        # Nothing needs the logits, or the weights, alone: products are added to the weights where they are.
        self._adds = pairs.weighted and not (self.keeps_logits or limited or pairs.importance)
        needed = 2 + ((pairs.weighted or pairs.importance or self.keeps_logits) and not self._adds) + self.keeps_logits
        self._memory = x.new_empty(needed, min(self.chunk, len(x)) * len(y), dtype=self.dtype)

    def parts(self) -> Iterator[slice]:
        """Yield the rows of each block."""
        for start in range(0, len(self.x), self.chunk):
            yield slice(start, min(start + self.chunk, len(self.x)))

    def load(self, part: slice) -> Tensor | None:
        """Compute the logits of a block; return which of its pairs are mates, None where there are no groups."""
        self.part = part
        n, m = part.stop - part.start, len(self.columns)
        self.logits, self.scratch, *self._more = (flat[: n * m].view(m, n).T for flat in self._memory)
        if self._adds:
            log_weights.write_block(self.pairs, part, self.logits, self.scratch)
        self.logits.addmm_(self.scale * self.x[part].to(self.dtype), self.columns.T, beta=int(self._adds))
        if self.bias is not None:
            self.logits += self.bias
        rows, columns = self.pairs.rows.groups, self.pairs.columns.groups
        if rows is None or columns is None:
            return None
        mates = rows[part, None] == columns
        self._positives(mates).fill_(False)
        return mates

    def terms(self, mates: Tensor | None) -> Iterator[Term]:
        """Yield what is to be summed over this block."""
        pairs, logits = self.pairs, self.logits
        drops = [
            None if limits is None else logits > limits
            for limits in (
                None if pairs.rows.limits is None else pairs.rows.limits[self.part, None],
                pairs.columns.limits if pairs.columns_too else None,
            )
        ]
        weights = None
        if pairs.weighted and not self._adds:
            weights = log_weights.write_block(pairs, self.part, self._more[0], self.scratch)
        elif self._more:
            weights = self._more[0].zero_()
        if weights is not None:
            self._positives(weights).fill_(-torch.inf)
            if mates is not None:
                weights.masked_fill_(mates, -torch.inf)
            if pairs.importance and not pairs.hardness:
                yield Term(IMPORTANCE, 0.0, *self._without(weights, drops))
        if weights is None or not self.keeps_logits:
            values = logits if weights is None else logits.add_(weights)
            self._positives(values).fill_(-torch.inf)
            yield Term(NEGATIVES, 1.0, *self._without(values, drops))
            return
        values = self._more[1]
        yield self._weighted(NEGATIVES, 1.0 + pairs.hardness, weights, drops, values)
        if pairs.importance and pairs.hardness:
            yield self._weighted(IMPORTANCE, pairs.hardness, weights, drops, values)
        if mates is not None:
            values.copy_(logits).masked_fill_(~mates, -torch.inf)
            yield Term(MATES, 1.0, values, values)

    def _weighted(self, which: int, slope: float, weights: Tensor, drops: list[Tensor | None], out: Tensor) -> Term:
        """Return the term of ``weights + slope * logits``."""
        torch.add(weights, self.logits, alpha=slope, out=out)
        return Term(which, slope, *self._without(out, drops))

    @staticmethod
    def _without(values: Tensor, drops: list[Tensor | None]) -> list[Tensor]:
        """Return the values for rows and for columns, without what is dropped for each."""
        return [values if drop is None else values.masked_fill(drop, -torch.inf) for drop in drops]

    def _positives(self, block: Tensor) -> Tensor:
        """Return a view of the positives of the block."""
        return block.diagonal(self.part.start + self.pairs.offset)[: len(block)]
