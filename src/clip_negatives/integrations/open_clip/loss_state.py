"""Where a run of open_clip keeps what a loss remembers of the samples: beside its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clip_negatives.anchors import AnchorLoss
from clip_negatives.integrations.loss_state import read_state, state_of, write_state


def store_state(loss: AnchorLoss | None, args: Any, completed: int) -> None:
    """Write the buffers of `loss` after `completed` epochs, on rank 0; every rank holds the same.

    Files of earlier epochs stay where open_clip kept a checkpoint of that epoch, and that of the epoch before always: open_clip
    writes its checkpoint after this, and may be stopped between the two.

    Raises:
        ArtifactError: it cannot be written.
    """
    if args.rank != 0 or not state_of(loss):
        return
    run = Path(args.checkpoint_path).parent
    write_state(loss, _file(run, completed))
    if not (run / "checkpoints" / f"epoch_{completed - 2}.pt").exists():
        _file(run, completed - 2).unlink(missing_ok=True)


def restore_state(loss: AnchorLoss | None, args: Any, epoch: int) -> None:
    """Fill the buffers of `loss` with what was stored after `epoch` epochs, where a run is resumed.

    Raises:
        ArtifactError: it is not there, or is of another loss.
    """
    if epoch > 0:
        read_state(loss, _file(Path(args.resume).parent.parent, epoch))


def _file(run: Path, epoch: int) -> Path:
    return run / "clip_negatives" / f"loss-epoch-{epoch}.safetensors"
