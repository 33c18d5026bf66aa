"""Start the processes of one run as torchrun does."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hooks import Met
from launches import LIMIT, Running, Setup, beside


def launched(
    line: Sequence[object], folder: Path, *, environment: Mapping[str, object] | None = None, setup: Sequence[Setup] = ()
) -> list[Running]:
    """Start two ranks of a command; see `Running` for the arguments."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ranks = []
    for rank in range(2):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        met = Met(beside(folder) / f"met-{rank}")
        ranks.append(Running(line, folder, environment={**(environment or {}), **names}, setup=(*setup, met)))
    return ranks


def wait_until_met(ranks: Sequence[Running], folder: Path) -> None:
    """Wait until all ranks have joined."""
    end = time.monotonic() + LIMIT
    while any(one.alive() for one in ranks) and time.monotonic() < end:
        if all((beside(folder) / f"met-{rank}").exists() for rank in range(len(ranks))):
            return
        time.sleep(0.01)
