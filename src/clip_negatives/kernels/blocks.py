"""Walk through the matrix of all pairs a block of rows at a time, for the backend "chunked"."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import log_weights

BLOCK_BYTES = 16 * 2**20
"""Size of a block of logits if no chunk size is given: large enough for full speed, small enough not to be noticed."""


def rows_at_once(y: Tensor, chunk_size: int | None) -> int:
    """Return how many rows a block has whose columns are the samples of `y`."""
    return chunk_size or max(16, BLOCK_BYTES // (torch.finfo(sum_dtype(y, y)).bits // 8 * len(y)))


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Cut rows x columns into blocks of rows; say how their pairs are weighted and where their positives are."""

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
        """Return a view of the positives of the block whose first row is `start`."""
        return block.diagonal(start + self.offset)[: len(block)]

    def logits(
        self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (rows, their logits with every column, scratch of the same shape); the next block overwrites both."""
        dtype = sum_dtype(x, y)
        columns = y.to(dtype).T
        # One pair of buffers for all blocks: fresh ones would have their pages mapped in anew every time. Like the
        # log-weights, they are laid out column by column.
        buffers = torch.empty(2, len(y), min(self.chunk, len(x)), dtype=dtype, device=x.device)
        for start in range(0, len(x), self.chunk):
            part = slice(start, min(start + self.chunk, len(x)))
            logits, scratch = buffers[:, :, : part.stop - start].mT
            torch.mm(scale.to(dtype) * x[part].to(dtype), columns, out=logits)
            if bias is not None:
                logits += bias.to(dtype)
            yield part, logits, scratch

    def shift(self, log_sum: Tensor, kept: Tensor) -> Tensor:
        """Return what to subtract from the log-weights of each row or column to normalise them if asked for."""
        return log_weights.mean_one_shift(log_sum, kept) if self.normalize else torch.zeros_like(log_sum)

    def weights(self, part: slice, like: Tensor) -> Tensor | None:
        """Return b of some rows with every column, -inf for the positives; None without weights."""
        if self.x_terms is None or self.y_terms is None:
            return None
        some = self.x_terms.map_samples(operator.itemgetter(part))
        # The other way round and transposed: what is expanded first then has K x chunk entries, not K x G.
        found = log_weights.block(self.y_terms, some, like.dtype, images_are_rows=not self.images_are_rows).T
        self.positives(found, part.start).fill_(-torch.inf)
        return found


class LogSums:
    """Gather the log-sum-exp of the rows and, carried from block to block, of the columns."""

    def __init__(self, blocks: Blocks, x: Tensor, y: Tensor) -> None:
        empty = torch.full((len(x) + len(y),), -torch.inf, dtype=sum_dtype(x, y), device=x.device)
        self.row, self.column = empty.split_with_sizes([len(x), len(y)])
        self.row_kept, self.column_kept = torch.zeros_like(empty).split_with_sizes([len(x), len(y)])
        self.columns_too = blocks.columns_too

    def add(self, part: slice, block: Tensor, scratch: Tensor) -> None:
        """Take the next block."""
        self.row[part] = _logsumexp(block, 1, scratch)
        if self.columns_too:
            torch.logaddexp(self.column, _logsumexp(block, 0, scratch), out=self.column)

    def count(self, part: slice, block: Tensor, scratch: Tensor) -> None:
        """Take how many of the next block are not -inf."""
        torch.gt(block, -torch.inf, out=scratch)
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
