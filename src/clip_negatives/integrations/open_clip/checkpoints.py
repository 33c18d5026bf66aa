"""Checkpoints of open_clip: written whole or not at all, readable before a run is resumed from one, and of finite weights.

open_clip writes each under its own name from the first byte on: a process that is killed meanwhile, or a full disk, leaves
half of one there, which ``--resume latest`` would take.
"""

from __future__ import annotations

import errno
import os
import pickle
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from open_clip_train.train import unwrap_model

from clip_negatives.atomic import replaced_file
from clip_negatives.errors import ArtifactError, DivergedError
from clip_negatives.integrations.open_clip.command_line import SOURCE_OF_RESUMED

UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError)
"""What torch raises for files that are cut, damaged or no checkpoint."""


@contextmanager
def whole_checkpoints() -> Iterator[None]:
    """Let ``torch.save``, which open_clip calls with the name of a file, give the file that name once it is on the disk.

    Raises:
        ArtifactError: it cannot be written; no file of that name is touched.
    """
    original = torch.save

    def save(obj: object, f: Any, *rest: Any, **named: Any) -> None:
        if not isinstance(f, str | os.PathLike):
            original(obj, f, *rest, **named)
            return
        with replaced_file(Path(f)) as partial:
            try:
                original(obj, partial, *rest, **named)
            except RuntimeError as error:  # of torch's own writer, which does not keep the system's error
                raise OSError(errno.EIO, str(error).splitlines()[0], str(f)) from error

    torch.save = save
    try:
        yield
    finally:
        torch.save = original


def check_resumed(main: ModuleType, args: Namespace) -> None:
    """Make sure that the checkpoint that open_clip will resume from can be read; of the tensors only what says where they are.

    Raises:
        ArtifactError: it cannot.
    """
    file = _resumed(main, args)
    if file is None:
        return
    try:
        with file.open("rb") as stream:
            zipped = stream.read(2) == b"PK"
        torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except UNREADABLE as error:
        hint = " Remove it: --resume latest goes on after the one before." if args.resume == SOURCE_OF_RESUMED else ""
        raise ArtifactError(
            f"Expected a checkpoint to resume from, got {file}, which cannot be read: it is cut, damaged or "
            f"not of tensors, numbers and texts alone.{hint}"
        ) from error


def check_finite(model: torch.nn.Module, epoch: int) -> None:
    """Refuse to go on with weights that are no numbers, before they are written as a checkpoint.

    Raises:
        DivergedError: a weight is NaN or infinite.
    """
    bad = [name for name, weight in unwrap_model(model).named_parameters() if not bool(weight.isfinite().all())]
    if bad:
        raise DivergedError(
            f"Expected finite weights after epoch {epoch}, got NaN or infinity in {bad[0]} and {len(bad) - 1} more: the "
            "training diverged, and no checkpoint of this epoch was written. Resume from the last one with a lower --lr, a "
            "longer --warmup or --grad-clip-norm."
        )


def _resumed(main: ModuleType, args: Namespace) -> Path | None:
    """Return the file that open_clip will resume from, by its own rule, or None where there is none on a disk."""
    if not args.resume or args.remote_sync is not None or "://" in args.resume:
        return None
    if args.resume != SOURCE_OF_RESUMED:
        return Path(args.resume)
    if args.name is None:
        return None
    folder = Path(args.logs) / args.name / "checkpoints"
    if args.save_most_recent:
        latest = folder / str(main.LATEST_CHECKPOINT_NAME)
        return latest if latest.exists() else None
    found = main.get_latest_checkpoint(str(folder), remote=False)
    return None if found is None else Path(found)
