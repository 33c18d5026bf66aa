"""What a loss remembers of the samples, kept beside checkpoints that hold only model and optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.anchors import AnchorLoss
from clip_negatives.atomic import replaced_file, write_tensors
from clip_negatives.errors import ArtifactError
from clip_negatives.reading import read_tensors


def state_of(loss: AnchorLoss | None) -> dict[str, Tensor]:
    """Return the persistent buffers of a loss, by name; most losses have none."""
    kept = {} if loss is None else loss.state_dict()
    return {} if loss is None else {name: buffer for name, buffer in loss.named_buffers() if name in kept}


def write_state(loss: AnchorLoss | None, file: Path) -> None:
    """Write the buffers of `loss`, where it has some.

    Raises:
        ArtifactError: they cannot be written.
    """
    if state := state_of(loss):
        with replaced_file(file) as partial:
            write_tensors({name: buffer.cpu() for name, buffer in state.items()}, partial)


def read_state(loss: AnchorLoss | None, file: Path) -> None:
    """Fill the buffers of `loss`, where it has some, with what `write_state` wrote.

    Raises:
        ArtifactError: the file is not there, or is of another loss.
    """
    if not state_of(loss):
        return
    try:
        stored = read_tensors(file)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"Expected what the loss remembers at {file}, to resume there, got none that can be read. "
            "Resume from the run's own checkpoints."
        ) from error
    fill_state(loss, stored, str(file))


def fill_state(loss: AnchorLoss | None, stored: Mapping[str, Tensor], where: str) -> None:
    """Fill the buffers of `loss` with those of `stored`.

    Raises:
        ArtifactError: they are of another loss; `where` they were found.
    """
    state = state_of(loss)
    kinds = [{name: (one.shape, one.dtype) for name, one in tensors.items()} for tensors in (stored, state)]
    if kinds[0] != kinds[1]:
        raise ArtifactError(
            f"Expected the state of the same loss over the same data in {where}, got another. Resume with the same weighting."
        )
    with torch.no_grad():
        for name, buffer in state.items():
            buffer.copy_(stored[name])
