"""The processes that cluster together: what each does, and what they tell one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from clip_negatives.errors import ClipNegativesError, ProcessError
from clip_negatives.processes import from_first_rank, reporting_loss

T = TypeVar("T")

CPU = torch.device("cpu")

SENT_AT_ONCE = 2**24
"""Numbers of a share that are sent at a time."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Stand for the processes of a group, seen from one of them; as it is made without arguments, for a process alone.

    What they tell one another raises a ProcessError where one of them was lost.

    Attributes:
        rank: this process, 0 .. size-1.
        size: processes.
        device: where tensors lie that are sent: a GPU with nccl.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @classmethod
    def of_group(cls) -> Ranks:
        """Return the default group of torch.distributed, or one process where there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else CPU
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def share(self, n: int, rank: int | None = None) -> range:
        """Return which of n things, side by side, a process does; this one if none is named."""
        rank = self.rank if rank is None else rank
        return range(n * rank // self.size, n * (rank + 1) // self.size)

    def together(self, make: Callable[[], T]) -> T:
        """Return what `make`, which sends nothing, returns here; where it fails anywhere, fail everywhere.

        Raises:
            ProcessError: it failed in another process; in the one where it failed its own error is raised. The `rank` of
                errors of ours is that of the process that reports.
        """
        if self.size == 1:
            return make()
        made: list[T] = []
        error = None
        try:
            made.append(make())
        except Exception as failure:  # Raised below, once the others know.
            error = failure
        failed = int(self.largest(-1 if error is None else self.rank))
        if error is None and failed >= 0:
            error = ProcessError(
                f"Expected every process to do its share of the clustering, got an error in process {failed}. See what it says."
            )
        if isinstance(error, ClipNegativesError):
            error.rank = failed
        if error is not None:
            raise error
        return made[0]

    def first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in process 0, or raise what it raises there."""
        if self.size == 1:
            return make()
        made: T = from_first_rank(make)
        return made

    def largest(self, number: float) -> float:
        """Return the largest of the numbers that the processes have."""
        if self.size == 1:
            return number
        sent = torch.tensor([number], dtype=torch.float64, device=self.device)
        with reporting_loss():
            dist.all_reduce(sent, dist.ReduceOp.MAX)
        return float(sent)

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes; the tensor itself may be written to."""
        if self.size == 1:
            return tensor
        sent = tensor.to(self.device).contiguous()
        flat = sent.view(-1)
        with reporting_loss():
            for part in flat.split(SENT_AT_ONCE):
                dist.all_reduce(part)
        return sent.to(tensor.device)

    def from_first(self, tensor: Tensor) -> Tensor:
        """Return the tensor of process 0, of one shape and dtype everywhere."""
        if self.size == 1:
            return tensor
        sent = tensor.to(self.device).contiguous()
        with reporting_loss():
            dist.broadcast(sent, src=0)
        return sent.to(tensor.device)

    def joined(self, part: Tensor) -> Tensor:
        """Return the parts of all processes, one after the other; they may be of different lengths."""
        if self.size == 1:
            return part
        length = torch.tensor([len(part)], device=self.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        with reporting_loss():
            dist.all_gather(lengths, length)
        parts = []
        for rank, size in enumerate(int(each) for each in lengths):
            whole = part.contiguous() if rank == self.rank else part.new_empty(size, *part.shape[1:])
            for some in whole.split(SENT_AT_ONCE) if size else ():
                sent = some.to(self.device)
                with reporting_loss():
                    dist.broadcast(sent, src=rank)
                some.copy_(sent)
            parts.append(whole)
        return torch.cat(parts)
