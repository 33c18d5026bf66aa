"""What a method has learned in a training, stored beside the checkpoints of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.errors import ArtifactError, InputError
from clip_negatives.interfaces import NegativeSampler, ObservingSampler
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.safe_reading import read_tensors_and_metadata
from clip_negatives.training.loss_parameters import LossParameters

OPTIMIZER, SAMPLER = "optimizer:", "sampler:"  # prefixes of names; the tensors of the loss have none


@dataclass(frozen=True)
class MethodState:
    """The state of a method: of its anchor loss, of the optimizer of its parameters, and of its sampler.

    Attributes:
        loss: the anchor loss; None if the weighting gives loss terms, which have no state.
        parameters: the parameters of the loss in the optimizer; None if they are in no optimizer.
        sampler: the negative sampler.
    """

    loss: AnchorLoss | None = None
    parameters: LossParameters | None = None
    sampler: NegativeSampler | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name; most methods have none."""
        state = {} if self.loss is None else {k: v for k, v in self.loss.state_dict().items() if isinstance(v, Tensor)}
        if self.parameters is not None:
            state |= {f"{OPTIMIZER}{name}": value for name, value in self.parameters.state().items()}
        if isinstance(self.sampler, ObservingSampler):
            state |= {f"{SAMPLER}{name}": value for name, value in self.sampler.learned().items()}
        return state

    def fill(self, stored: Mapping[str, Tensor], place: str) -> None:
        """Set the state to `stored`, which was read from `place`."""
        optimizer, sampler = (_without_prefix(stored, prefix) for prefix in (OPTIMIZER, SAMPLER))
        of_loss = {name: value for name, value in stored.items() if not name.startswith((OPTIMIZER, SAMPLER))}
        fault = (
            f"The state in {place} belongs to another method, to other data or to other code of a plugin. Resume with the same "
            "sampler and weighting."
        )
        if bool(sampler) != isinstance(self.sampler, ObservingSampler) or (self.loss is None and of_loss):
            raise ArtifactError(fault)
        try:
            if self.loss is not None:
                self.loss.load_state_dict(of_loss)
            if self.parameters is not None:
                self.parameters.load_state(optimizer)
            if isinstance(self.sampler, ObservingSampler):
                self.sampler.load_learned(sampler)
        except (RuntimeError, KeyError, InputError) as error:
            raise ArtifactError(fault) from error

    def write(self, file: Path, clusters: str = "") -> None:
        """Write the state, if there is any, with the digest of the clusters."""
        if state := self.tensors():
            with replaced_file(file) as partial:
                write_tensors({name: value.cpu() for name, value in state.items()}, partial, {"clusters": clusters})

    def read(self, file: Path, clusters: str = "") -> None:
        """Restore the state that `write` wrote, if the method has one; a state of other clusters is an ArtifactError."""
        if not self.tensors():
            return
        try:
            stored, metadata = read_tensors_and_metadata(file)
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"The state of the method at {file} is missing or damaged. Resume from the run's own checkpoints."
            ) from error
        check_clusters(metadata.get("clusters", ""), clusters, str(file))
        self.fill(stored, str(file))


def check_clusters(stored: str, own: str, place: str) -> None:
    """Check that a state is of these clusters, whose digests are given; "" is unknown."""
    if stored and own and stored != own:
        raise ArtifactError(
            f"The state of the method in {place} is of other data or clusters: its values belong to other samples. Resume with "
            "those of the stopped run, or use a weighting without a state."
        )


def _without_prefix(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
