"""open_clip's checkpoints: atomic writes, checks before a resume, and the state of the method beside each checkpoint."""

from __future__ import annotations

import errno
import glob
import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from clip_negatives.errors import ArtifactError, DivergedError
from clip_negatives.integrations.open_clip.arguments import LATEST
from clip_negatives.integrations.open_clip.teacher import Teacher
from clip_negatives.printing import log
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.ownership import remove_file, replaced_file
from clip_negatives.storage.safe_reading import check_file, read_tensors
from clip_negatives.training.method_state import MethodState


def atomic_save(save: Callable[..., None]) -> Callable[..., None]:
    """Return a ``torch.save`` that writes atomically: ``--resume latest`` never finds a partial checkpoint."""

    def save_atomically(obj: object, f: Any, *rest: Any, **named: Any) -> None:
        if not isinstance(f, str | os.PathLike):
            save(obj, f, *rest, **named)
            return
        with replaced_file(Path(f)) as partial:
            try:
                save(obj, partial, *rest, **named)
            except RuntimeError as error:  # torch hides the OSError
                raise OSError(errno.EIO, str(error).splitlines()[0], str(f)) from error

    return save_atomically


def latest_checkpoint(main: ModuleType) -> Callable[..., str | None]:
    """Return open_clip's search for the latest checkpoint, extended to folders with ``*``, ``?`` or ``[`` in their names."""
    search = main.get_latest_checkpoint

    def search_escaped(path: str, remote: bool) -> str | None:
        checkpoint: str | None = search(path if remote else glob.escape(path), remote=remote)
        return checkpoint

    return search_escaped


def check_resumed(main: ModuleType, args: Namespace) -> Path | None:
    """Check that the checkpoint that open_clip will resume from can be read, without loading its tensors.

    Returns:
        The checkpoint. None if it is not on this machine, or if it has only weights: then a new training starts from them.
    """
    file = resumed_file(main, args)
    if file is None:
        return None
    stored = read_checkpoint(file, args)
    return file if "epoch" in stored else None


def read_checkpoint(file: Path, args: Namespace) -> dict[str, Any]:
    """Return a local checkpoint, with memory-mapped tensors; ArtifactError if it is damaged or has another structure."""
    repair = "Use another checkpoint for --resume."
    if args.resume == LATEST:
        is_only = all(checkpoint == file for checkpoint in file.parent.glob("*.pt"))
        repair = f"Remove it: --resume latest then {'trains from the start' if is_only else 'uses the one before'}."
    if file.is_dir():
        raise ArtifactError(
            f"The checkpoint {file} is a folder of the parts of a sharded model. Its index is a pickle, which can run code. "
            "Use a .pt file for --resume."
        )
    try:
        check_file(file)
        with file.open("rb") as stream:
            zipped = stream.read(2) == b"PK"
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:  # errors of torch.load
        raise ArtifactError(
            f"The checkpoint {file} cannot be read: it is damaged, or holds more than tensors, numbers and texts. {repair}"
        ) from error
    if not isinstance(stored, dict) or not stored:
        raise ArtifactError(f"The checkpoint {file} holds no weights. {repair}")
    if "epoch" in stored:
        epoch = stored["epoch"]
        missing = [name for name in ("state_dict", "optimizer") if not isinstance(stored.get(name), dict)]
        if type(epoch) is not int or epoch < 0 or missing:
            fault = f"no {missing[0]}" if missing else f"the epoch {epoch!r}"
            raise ArtifactError(f"The checkpoint {file} has {fault}. {repair}")
    elif "state_dict" in stored:
        raise ArtifactError(f"The checkpoint {file} has no epoch to resume at. Pass it to --pretrained, or use another one.")
    return stored


def check_finite(model: torch.nn.Module, epoch: int) -> None:
    """Raise DivergedError if a weight is not finite; called before a checkpoint is written."""
    not_finite = [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]
    if not_finite:
        raise DivergedError(
            f"The training diverged: after epoch {epoch}, {not_finite[0]} and {len(not_finite) - 1} more weights are NaN or "
            "infinite. This epoch has no checkpoint. Use a lower --lr, a longer --warmup or --grad-clip-norm."
        )


def resumed_run(checkpoint: str | Path) -> Path:
    """Return the folder of the run that wrote a checkpoint; the path of the checkpoint may be relative or a link."""
    return Path(checkpoint).resolve().parent.parent


def store_state(method: MethodState, args: Any, completed: int, data: str) -> None:
    """Write the state of the method after `completed` epochs, with a digest of the training data `data`.

    Only rank 0 writes, because all ranks have the same state. The file of the previous epoch stays: the run can stop after this
    call and before open_clip writes its checkpoint. The file before it is deleted, unless open_clip kept its checkpoint.
    """
    if args.rank != 0 or not method.tensors():
        return
    run = Path(args.checkpoint_path).parent
    method.write(_state_file(run, completed), data)
    if not (run / "checkpoints" / f"epoch_{completed - 2}.pt").exists():
        remove_file(_state_file(run, completed - 2))


def restore_state(method: MethodState, args: Any, epoch: int, data: str) -> None:
    """In a resumed run, restore the state after `epoch` epochs; ArtifactError if it belongs to data with another digest."""
    if epoch > 0:
        method.read(_state_file(resumed_run(args.resume), epoch), data)


def store_teacher(teacher: Teacher | None, args: Any, completed: int) -> None:
    """Write the weights of a teacher that changes after `completed` epochs, and delete old ones as `store_state` does."""
    if args.rank != 0 or teacher is None:
        return
    run = Path(args.checkpoint_path).parent
    teacher.write(_teacher_file(run, completed))
    if not (run / "checkpoints" / f"epoch_{completed - 2}.pt").exists():
        remove_file(_teacher_file(run, completed - 2))


def restore_teacher(teacher: Teacher | None, args: Any, epoch: int) -> None:
    """In a resumed run, restore the weights of a teacher that changes, after `epoch` epochs."""
    if epoch > 0 and teacher is not None:
        teacher.read(_teacher_file(resumed_run(args.resume), epoch))


def store_random(args: Any, epoch: int) -> None:
    """Write the state of torch's random generator before `epoch`, which determines the batches of a single process.

    With several processes, seed and epoch determine the batches, so no state is needed.
    """
    if args.world_size > 1:
        return
    run = Path(args.checkpoint_path).parent
    with replaced_file(_random_file(run, epoch)) as partial:
        write_tensors({"torch": torch.get_rng_state()}, partial)
    if not (run / "checkpoints" / f"epoch_{epoch - 2}.pt").exists():
        remove_file(_random_file(run, epoch - 2))


def restore_random(args: Any, epoch: int) -> None:
    """Restore the state that `store_random` wrote: a resumed run then sees the same batches as a run that was not stopped."""
    if args.world_size > 1:
        return
    file = _random_file(resumed_run(args.resume), epoch)
    try:
        torch.set_rng_state(read_tensors(file, {"torch": (("uint8",), 1)})["torch"].clone())
    except (OSError, ValueError, RuntimeError) as error:
        log(f"epoch {epoch} is shuffled anew, because {file} cannot be read: {error}")


def _random_file(run: Path, epoch: int) -> Path:
    return run / "clip_negatives" / f"random-epoch-{epoch}.safetensors"


def _teacher_file(run: Path, epoch: int) -> Path:
    return run / "clip_negatives" / f"teacher-epoch-{epoch}.safetensors"


def _state_file(run: Path, epoch: int) -> Path:
    return run / "clip_negatives" / f"loss-epoch-{epoch}.safetensors"


def resumed_file(main: ModuleType, args: Namespace) -> Path | None:
    """Return the local file that open_clip will resume from, by open_clip's rule, or None."""
    if not args.resume or args.remote_sync is not None or "://" in args.resume:
        return None
    if args.resume != LATEST:
        return Path(args.resume)
    if args.name is None:
        return None
    folder = Path(args.logs) / args.name / "checkpoints"
    most_recent = folder / str(main.LATEST_CHECKPOINT_NAME)
    if args.save_most_recent and not most_recent.exists():
        most_recent = most_recent.with_suffix("")  # of a sharded model
    file = most_recent if args.save_most_recent else latest_checkpoint(main)(str(folder), remote=False)
    return Path(file) if file is not None and Path(file).exists() else None
