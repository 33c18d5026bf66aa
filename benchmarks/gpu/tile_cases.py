"""Cases of the options of the fused kernels: sizes of tiles, registers, stages, and memory for slopes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from losses import loss_of, make_step
from triton.runtime.errors import OutOfResources

from clip_negatives.losses.kernels import fused, problem
from gpu.cases import Case
from gpu.loss_cases import FULL, WARMUPS, Shape, seconds_of

MIB = 2**20
ROUNDS = 7 if FULL else 1
DEFAULT = "default"
Option = tuple[dict[str, int | None], int | None]  # changed tile options (None: no limit), and MiB of memory for slopes
OPTIONS: tuple[Option, ...] = (
    ({}, None),
    ({"maxnreg": None}, None),
    ({"BM": 128, "BN": 256, "maxnreg": None}, None),
    ({}, 32),
    *(({}, mib) for mib in (16, 128, 256, 512)),
    ({"BM": 128, "BN": 256, "num_stages": 2, "maxnreg": None}, None),
    ({"BM": 256, "BN": 128, "maxnreg": None}, None),
    ({"num_stages": 2}, None),
    ({"num_stages": 4}, None),
    ({"BK": 128, "num_stages": 2}, None),
    ({"BK": 32, "num_stages": 4}, None),
    ({"BM": 128, "BN": 64, "num_warps": 4}, None),
    ({"BM": 64, "BN": 128, "num_warps": 4}, None),
    ({"GROUP": 4}, None),
    ({"GROUP": 16}, None),
)
REHEARSED = (OPTIONS[0], OPTIONS[2], OPTIONS[3])


@contextmanager
def tuned(tile: dict[str, int | None], slopes_mib: int | None = None) -> Iterator[dict[str, int | None]]:
    """Run the fused kernels with other tile options and memory for slopes; yield the options that were last used."""
    default, used = problem.tile_of, {}

    def tile_of(*args: Any, **kwargs: Any) -> dict[str, int | None]:
        used.update(default(*args, **kwargs) | tile)
        return used

    slopes = fused.SLOPES_BYTES if slopes_mib is None else slopes_mib * MIB
    with mock.patch.object(problem, "tile_of", tile_of), mock.patch.object(fused, "SLOPES_BYTES", slopes):
        yield used


def tile_cases(shape: Shape, options: tuple[Option, ...] = OPTIONS) -> Iterator[Case]:
    """Yield a case for each option, with and without weights; the default options come first."""
    for tile, slopes_mib in options:
        for kind in ("weighted", "none"):
            group = f"tile options, triton {kind}, {shape}"
            values = (kind, shape, tile, slopes_mib)
            yield Case("tiles", group, _label(tile, slopes_mib), lambda values=values: _tile_figures(*values), 20.0)


def _label(tile: dict[str, int | None], slopes_mib: int | None) -> str:
    labels = [f"{name} {value}" for name, value in tile.items()]
    return ", ".join(labels + ([] if slopes_mib is None else [f"slopes {slopes_mib} MiB"])) or DEFAULT


def _tile_figures(kind: str, shape: Shape, tile: dict[str, int | None], slopes_mib: int | None) -> dict[str, Any]:
    n, d, k = shape
    figures: dict[str, Any] = {"name": _label(tile, slopes_mib), "weights": kind, **shape._asdict()}
    with tuned(tile, slopes_mib) as used:
        loss = loss_of(f"triton {kind}", n, k)
        try:
            for passes, figure in (("both", "seconds"), ("forward", "forward_seconds"), ("backward", "backward_seconds")):
                step = make_step(loss, n, d, passes=passes)
                for _ in range(WARMUPS):
                    step()
                figures[figure] = statistics.median(seconds_of(step) for _ in range(ROUNDS))
        except OutOfResources as error:
            return {**figures, "cannot": str(error).splitlines()[0]}
    return {**figures, "tile": used}
