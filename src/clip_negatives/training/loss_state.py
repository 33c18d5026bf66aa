"""State of an anchor loss, such as a value for each sample, stored beside the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.safe_reading import read_tensors_and_metadata


def state_of(loss: AnchorLoss | None) -> dict[str, Tensor]:
    """Return the persistent buffers of a loss, by name; most losses have none."""
    if loss is None:
        return {}
    stored = loss.state_dict()
    return {name: buffer for name, buffer in loss.named_buffers() if name in stored}


def write_state(loss: AnchorLoss | None, file: Path, clusters: str = "") -> None:
    """Write the state of a loss, if it has one, with the digest of its clusters."""
    if state := state_of(loss):
        with replaced_file(file) as partial:
            write_tensors({name: buffer.cpu() for name, buffer in state.items()}, partial, {"clusters": clusters})


def read_state(loss: AnchorLoss | None, file: Path, clusters: str = "") -> None:
    """Restore the state that `write_state` wrote, if the loss has one; a state of other clusters is an ArtifactError."""
    if not state_of(loss):
        return
    try:
        stored, metadata = read_tensors_and_metadata(file)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"The state of the loss at {file} is missing or damaged. Resume from the run's own checkpoints."
        ) from error
    check_clusters(metadata.get("clusters", ""), clusters, str(file))
    fill_state(loss, stored, str(file))


def check_clusters(stored: str, own: str, place: str) -> None:
    """Check that a state is of these clusters, whose digests are given; "" is unknown."""
    if stored and own and stored != own:
        raise ArtifactError(
            f"The state of the loss in {place} is of other data or clusters: its values belong to other samples. Resume with "
            "those of the stopped run, or use a weighting without a state."
        )


def fill_state(loss: AnchorLoss | None, stored: Mapping[str, Tensor], place: str) -> None:
    """Set the state of a loss to `stored`, which was read from `place`."""
    state = state_of(loss)
    layouts = [{name: (value.shape, value.dtype) for name, value in tensors.items()} for tensors in (stored, state)]
    if layouts[0] != layouts[1]:
        raise ArtifactError(f"The state in {place} belongs to another loss or other data. Resume with the same weighting.")
    with torch.no_grad():
        for name, buffer in state.items():
            buffer.copy_(stored[name])
