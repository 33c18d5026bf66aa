"""What a loss remembers of the samples, kept beside open_clip's checkpoints, which hold only model and optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_negatives.anchors import AnchorLoss
from clip_negatives.atomic import replaced_file, write_tensors
from clip_negatives.errors import ArtifactError


def store_state(loss: AnchorLoss | None, args: Any, completed: int) -> None:
    """Write the buffers of `loss` after `completed` epochs, on rank 0; every rank holds the same.

    Files of earlier epochs stay where open_clip kept a checkpoint of that epoch, and that of the epoch before always: open_clip
    writes its checkpoint after this, and may be stopped between the two.

    Raises:
        ArtifactError: it cannot be written.
    """
    if loss is None or args.rank != 0 or not (state := _state(loss)):
        return
    run = Path(args.checkpoint_path).parent
    with replaced_file(_file(run, completed)) as file:
        write_tensors({name: buffer.cpu() for name, buffer in state.items()}, file)
    if not (run / "checkpoints" / f"epoch_{completed - 2}.pt").exists():
        _file(run, completed - 2).unlink(missing_ok=True)


def restore_state(loss: AnchorLoss | None, args: Any, epoch: int) -> None:
    """Fill the buffers of `loss` with what was stored after `epoch` epochs, where a run is resumed.

    Raises:
        ArtifactError: it is not there, or is of another loss.
    """
    if loss is None or epoch == 0 or not (state := _state(loss)):
        return
    file = _file(Path(args.resume).parent.parent, epoch)
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"Expected what the loss remembers after epoch {epoch} at {file}, to resume there, got none that can be read. "
            "Resume from the run's own checkpoints."
        ) from error
    if {name: one.shape for name, one in stored.items()} != {name: one.shape for name, one in state.items()}:
        raise ArtifactError(
            f"Expected the state of the same loss over the same data in {file}, got another. Resume with the same weighting."
        )
    with torch.no_grad():
        for name, buffer in state.items():
            buffer.copy_(stored[name])


def _state(loss: AnchorLoss) -> dict[str, Tensor]:
    """Return the persistent buffers, by name."""
    kept = loss.state_dict()
    return {name: buffer for name, buffer in loss.named_buffers() if name in kept}


def _file(run: Path, epoch: int) -> Path:
    return run / "clip_negatives" / f"loss-epoch-{epoch}.safetensors"
