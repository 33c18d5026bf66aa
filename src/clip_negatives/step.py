"""Identity of the samples of a batch, passed from the loader to the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class BatchSamples:
    """Identity of the samples of one batch: their ids or, in a stream, their clusters.

    Attributes:
        ids: sample of each pair, counted from 0 in the data set that was clustered, int64, shape (B,).
        labels: image cluster and text cluster of each pair, int64, shape (B, 2), -1 if unknown. For streams without ids.
        text_ids: ids of the captions of each sample, int64, shape (B, 1 + E + F): the sample's own caption, the E captions
            that a sampler added, the captions of the F images that it added. Equal captions have equal ids. None without
            additions.
        progress: share of the training before this batch, float32, shape (), 0 .. 1; None if unknown. Schedules of weights
            need it.

    Examples:
        >>> import torch
        >>> first, second = BatchSamples(ids=torch.tensor([3, 1])), BatchSamples(ids=torch.tensor([0, 2]))
        >>> BatchSamples.concatenate([first, second]).ids
        tensor([3, 1, 0, 2])
    """

    ids: Tensor | None = None
    labels: Tensor | None = None
    text_ids: Tensor | None = None
    progress: Tensor | None = None

    def __len__(self) -> int:
        """Return B."""
        return next((len(part) for part in self), 0)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the tensors that are not None, each with B rows: Lightning reads the batch size from them."""
        return (part for part in (self.ids, self.labels, self.text_ids) if part is not None)

    def to(self, device: torch.device | str) -> BatchSamples:
        """Return the same samples on `device`."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> BatchSamples:
        """Return the same samples in pinned memory; `torch.utils.data.DataLoader` calls this."""
        return self._map(lambda part: part.pin_memory())

    @classmethod
    def concatenate(cls, batches: Sequence[BatchSamples]) -> BatchSamples:
        """Return several batches as one, in order; the same attributes must be set in all batches.

        The progress is that of the first batch.
        """
        import torch

        columns = zip(*((batch.ids, batch.labels, batch.text_ids) for batch in batches), strict=True)
        present = ([part for part in column if part is not None] for column in columns)
        progress = next((batch.progress for batch in batches), None)
        ids, labels, text_ids = (torch.cat(parts) if parts else None for parts in present)
        return cls(ids, labels, text_ids, progress)

    def at(self, progress: float | None) -> BatchSamples:
        """Return the same samples at this share of the training."""
        import torch

        return dataclasses.replace(self, progress=None if progress is None else torch.tensor(progress, dtype=torch.float32))

    def _map(self, change: Callable[[Tensor], Tensor]) -> BatchSamples:
        parts = (self.ids, self.labels, self.text_ids, self.progress)
        return BatchSamples(*(None if part is None else change(part) for part in parts))
