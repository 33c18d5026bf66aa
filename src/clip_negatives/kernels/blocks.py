"""Walk through the matrix of all pairs a block of rows at a time, for the backend "chunked"."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import log_weights

BLOCK_BYTES = 16 * 2**20
"""Size of a block of logits if no chunk size is given: large enough for full speed, small enough not to be noticed."""


def rows_at_once(y: Tensor, chunk_size: int | None) -> int:
    """Return how many rows a block has whose columns are the samples of `y`."""
    return chunk_size or max(16, BLOCK_BYTES // (torch.finfo(sum_dtype(y, y)).bits // 8 * len(y)))


class Block(NamedTuple):
    """Hold some rows of the matrix of all pairs, with every column, until the next block is asked for.

    Attributes:
        part: which rows.
        negatives: weighted logits, -inf for the positives; may be overwritten.
        positive: logits of the positives, shape (rows,).
        weights: log-weights b before normalisation, -inf for the positives; None without weights.
        scratch: to be overwritten, of the same shape and layout.
    """

    part: slice
    negatives: Tensor
    positive: Tensor
    weights: Tensor | None
    scratch: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Say how the pairs of rows and columns are weighted, where their positives are, and walk through them."""

    x_terms: LossTerms | None
    y_terms: LossTerms | None
    offset: int
    images_are_rows: bool
    columns_too: bool
    chunk: int

    @property
    def normalize(self) -> bool:
        """Return whether the weights are to have mean 1."""
        return self.x_terms is not None and self.x_terms.normalize

    def positives(self, block: Tensor, start: int) -> Tensor:
        """Return a view of the positives in the block whose first row is `start`."""
        return block.diagonal(start + self.offset)[: len(block)]

    def shift(self, log_sum: Tensor, kept: Tensor) -> Tensor:
        """Return what to subtract from the log-weights of each row or column to normalise them if asked for."""
        return log_weights.mean_one_shift(log_sum, kept) if self.normalize else torch.zeros_like(log_sum)

    def blocks(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Iterator[Block]:
        """Yield the blocks from the first row to the last."""
        dtype = sum_dtype(x, y)
        columns = y.to(dtype).T
        # The same memory for all blocks: fresh memory has its pages mapped in, which costs more than the look-ups.
        buffers = x.new_empty(2 if self.x_terms is None else 3, min(self.chunk, len(x)) * len(y), dtype=dtype)
        for start in range(0, len(x), self.chunk):
            part = slice(start, min(start + self.chunk, len(x)))
            # Laid out column by column, as the look-up of weights is quickest so.
            logits, scratch, *more = (flat[: len(y) * len(x[part])].view(len(y), -1).T for flat in buffers)
            torch.mm(scale.to(dtype) * x[part].to(dtype), columns, out=logits)
            if bias is not None:
                logits += bias.to(dtype)
            positive = self.positives(logits, start).clone()
            if more:
                logits += self._weights(part, more[0], scratch)
            self.positives(logits, start).fill_(-torch.inf)
            yield Block(part, logits, positive, more[0] if more else None, scratch)

    def _weights(self, part: slice, out: Tensor, spare: Tensor) -> Tensor:
        """Write b of some rows with every column into `out`, -inf for the positives."""
        if self.x_terms is not None and self.y_terms is not None:
            some = self.x_terms.map_samples(operator.itemgetter(part))
            # The other way round and transposed: what is expanded first then has K x chunk entries, not K x G.
            swapped = not self.images_are_rows
            log_weights.block(self.y_terms, some, out.dtype, images_are_rows=swapped, buffers=(out.T, spare.T))
            self.positives(out, part.start).fill_(-torch.inf)
        return out


class LogSums:
    """Gather the log-sum-exp of the rows and, carried from block to block, of the columns."""

    def __init__(self, pairs: Pairs, x: Tensor, y: Tensor) -> None:
        empty = x.new_full((len(x) + len(y),), -torch.inf, dtype=sum_dtype(x, y))
        self.row, self.column = empty[: len(x)], empty[len(x) :]
        self.row_kept, self.column_kept = torch.zeros_like(self.row), torch.zeros_like(self.column)
        self.columns_too = pairs.columns_too

    def add(self, part: slice, values: Tensor, scratch: Tensor) -> None:
        """Take the next block."""
        self.row[part] = _logsumexp(values, 1, scratch)
        if self.columns_too:
            torch.logaddexp(self.column, _logsumexp(values, 0, scratch), out=self.column)

    def count(self, part: slice, values: Tensor, scratch: Tensor) -> None:
        """Take how many of the next block are not -inf."""
        torch.gt(values, -torch.inf, out=scratch)
        self.row_kept[part] = scratch.sum(1)
        if self.columns_too:
            self.column_kept += scratch.sum(0)


def sum_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """Return the precision of products, sums and exponentials: at least float32."""
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)


def _logsumexp(block: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """Return ``block.logsumexp(dim)`` without a temporary of the block's size."""
    top = block.amax(dim, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)  # nothing there: -inf - -inf would not be a number
    torch.sub(block, top, out=scratch).exp_()
    return scratch.sum(dim).log_().add_(top.squeeze(dim))
