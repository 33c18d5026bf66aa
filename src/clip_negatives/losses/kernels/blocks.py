"""Blocks of rows of the matrix of all pairs, for the chunked backend, in reused memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.gram import gram
from clip_negatives.losses.kernels import log_weights
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.sums import IMPORTANCE, MATES, NEGATIVES, TARGETS

BLOCK_BYTES = 16 * 2**20  # of logits, if no chunk size is given: large enough for full speed, little memory


class Term(NamedTuple):
    """Values of one block that go into one of the logarithmic sums; computing the next term overwrites them."""

    sum: int  # row of `PairSums`, or TARGETS
    slope: float  # derivative of the values with respect to the logits
    rows: Tensor  # values for the sums of rows, -inf for pairs outside the sum
    columns: Tensor  # values for the sums of columns; the same tensor as `rows` if they do not differ
    out: Tensor  # memory for the slopes; possibly that of the values of this term, never of a later term


class Blocks:
    """Blocks of rows of the matrix of all pairs, computed one after the other in the same memory.

    Allocating memory for each block would take longer than the look-ups. Blocks are column-major, which makes the look-up of
    weights fastest. If all pairs fit in one block, the forward pass can keep it for the backward pass.
    """

    logits: Tensor
    scratch: Tensor
    scores: Tensor  # <f_i, f_j> of the targets, -inf for positives; only if the pairs are targeted

    def __init__(self, inputs: Inputs, pairs: Pairs, chunk: int | None, kept: list[Tensor] | None = None) -> None:
        """Reserve the memory; `kept` is an empty list in the forward pass, and the same list in the backward pass."""
        x, y, scale, bias = inputs
        self._kept, self._reuses = kept, bool(kept)
        self.pairs, self.dtype = pairs, inputs.precision()
        self.x, self.columns = x, y.to(self.dtype)
        self.scale, self.bias = scale.to(self.dtype), None if bias is None else bias.to(self.dtype)
        self.chunk = chunk or max(16, BLOCK_BYTES // (self.dtype.itemsize * len(y)))
        # Groups and hardness need several sums over one block, each from the logits.
        self.keeps_logits = pairs.rows.groups is not None or bool(pairs.hardness)
        limited = pairs.row_limits is not None or pairs.column_limits is not None
        # If nothing needs the logits without the weights, the product is added to the weights in place.
        self._adds = pairs.rows.weighted and not (self.keeps_logits or limited or pairs.targeted)
        separate = pairs.importance or self.keeps_logits or (pairs.rows.weighted and not self._adds)
        needed = 2 + separate + 2 * self.keeps_logits + pairs.targeted
        size = min(self.chunk, len(x)) * len(y)
        self._memory = [x.new_empty(size, dtype=self.dtype) for _ in range(needed)]  # kept blocks shall not keep all memory

    def parts(self) -> Iterator[slice]:
        """Yield the rows of each block."""
        for start in range(0, len(self.x), self.chunk):
            yield slice(start, min(start + self.chunk, len(self.x)))

    def load(self, part: slice) -> Tensor | None:
        """Compute the logits of a block; return which pairs are mates (of one group), or None without groups."""
        self.part = part
        n, m = part.stop - part.start, len(self.columns)
        self.logits, self.scratch, *self._more = (flat[: n * m].view(m, n).T for flat in self._memory)
        self._slopes = self._more.pop() if self.keeps_logits else self.logits
        if self.pairs.targeted:
            self.scores = self._target_slopes = self._more.pop()
        if self._kept and self._reuses:  # to be read only: the backward pass may come again
            self.logits, self.scores = self._kept[0], self._kept[-1]
        else:
            self._compute()
            if self._kept is not None and n == len(self.x):
                self._kept += [self.logits, self.scores] if self.pairs.targeted else [self.logits]
        rows, columns = self.pairs.rows.groups, self.pairs.columns.groups
        if rows is None or columns is None:
            return None
        mates = rows[part, None] == columns
        self._positives(mates).fill_(False)
        return mates

    def _compute(self) -> None:
        """Write the logits of the block and, if the pairs are targeted, the scores."""
        part = self.part
        if self._adds:
            log_weights.write_block(self.pairs, part, self.logits, self.scratch)
            for weights in self._more:  # for the sums of weights
                weights.copy_(self.logits)
        self.logits.addmm_(self.scale * self.x[part].to(self.dtype), self.columns.T, beta=int(self._adds))
        if self.bias is not None:
            self.logits += self.bias
        row_factors, column_factors = self.pairs.rows.target_factors, self.pairs.columns.target_factors
        if row_factors is not None and column_factors is not None:
            if row_factors is column_factors and len(self.scores) == len(row_factors):
                gram(row_factors.to(self.dtype), out=self.scores.T)
            else:
                torch.mm(column_factors.to(self.dtype), row_factors[part].to(self.dtype).T, out=self.scores.T)
            self._remove_positives(self.scores)

    def terms(self, mates: Tensor | None) -> Iterator[Term]:
        """Yield the terms of the loaded block; `mates` is the result of `load`."""
        pairs, logits = self.pairs, self.logits
        row_limits = None if pairs.row_limits is None else pairs.row_limits[self.part, None]
        column_limits = pairs.column_limits if pairs.columns_too else None
        above = [None if limits is None else logits > limits for limits in (row_limits, column_limits)]
        weights = self._more[0] if self._more else None
        if weights is not None and pairs.rows.weighted and not self._adds:
            log_weights.write_block(pairs, self.part, weights, self.scratch)
        elif weights is not None and not self._adds:
            weights.zero_()
        if weights is not None:
            self._remove_positives(weights)
            if mates is not None:
                weights.masked_fill_(mates, -torch.inf)
            if pairs.importance and not pairs.hardness:
                yield _term(IMPORTANCE, 0.0, weights, above, weights)
        if weights is None or not self.keeps_logits:
            values = logits if weights is None or self._adds else weights.add_(logits)
            if not self._reuses:
                self._remove_positives(values, logits)  # the backward pass reads the logits if they are kept
            yield _term(NEGATIVES, 1.0, values, above, self._slopes)
            return
        values = self._more[1]
        slope = 1.0 + pairs.hardness
        yield _term(NEGATIVES, slope, torch.add(weights, logits, alpha=slope, out=values), above, self._slopes)
        if pairs.importance and pairs.hardness:
            yield _term(IMPORTANCE, pairs.hardness, torch.add(weights, logits, alpha=pairs.hardness, out=values), above, values)
        if mates is not None:
            values.copy_(logits).masked_fill_(~mates, -torch.inf)
            yield Term(MATES, 1.0, values, values, values)

    def target_term(self) -> Term:
        """Return the term of the targets: their softmax is the derivative of `TARGET_LOGITS` with respect to the logits."""
        return Term(TARGETS, 1.0, self.scores, self.scores, self._target_slopes)

    def _remove_positives(self, *blocks: Tensor) -> None:
        for block in blocks:
            self._positives(block).fill_(-torch.inf)

    def _positives(self, block: Tensor) -> Tensor:
        """Return a view of the positives of the block."""
        return block.diagonal(self.part.start + self.pairs.offset)[: len(block)]


def _term(index: int, slope: float, values: Tensor, above: list[Tensor | None], out: Tensor) -> Term:
    """Return a term: `rows` is -inf where a value is above its row's limit, `columns` where it is above its column's."""
    rows, columns = (values if mask is None else values.masked_fill(mask, -torch.inf) for mask in above)
    return Term(index, slope, rows, columns, out)
