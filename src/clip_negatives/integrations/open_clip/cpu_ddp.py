"""open_clip's distributed training on CPUs.

open_clip 3.3 names the device of each process when it wraps the model (``device_ids=[device]``), which torch's
`DistributedDataParallel` allows for accelerators only: ``torchrun`` on CPUs ends there with "device_ids=[...] should be None".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import parallel


class CpuDistributedDataParallel(parallel.DistributedDataParallel):
    """`DistributedDataParallel` that leaves ``device_ids`` out where the module lies on the CPU."""

    def __init__(self, module: torch.nn.Module, device_ids: Any = None, *rest: Any, **named: Any) -> None:
        on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
        super().__init__(module, None if on_cpu else device_ids, *rest, **named)


@contextmanager
def cpu_ddp() -> Iterator[None]:
    """Let open_clip, which looks the class up in ``torch.nn.parallel``, find ours there."""
    original = parallel.DistributedDataParallel
    parallel.DistributedDataParallel = CpuDistributedDataParallel  # type: ignore[misc]
    try:
        yield
    finally:
        parallel.DistributedDataParallel = original  # type: ignore[misc]
