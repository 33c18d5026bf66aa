"""What is kept after each iteration, so that a restart with any number of processes goes on there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_negatives.atomic import replaced_file, write_tensors
from clip_negatives.errors import ArtifactError
from clip_negatives_parallel_kmeans.ranks import Ranks

FORMAT = 1
"""Version of the files."""


@dataclass(slots=True)
class State:
    """Hold where k-means is between two iterations; the same on all processes.

    Attributes:
        centroids: float32, shape (K, D).
        seen: rows that each centroid was moved by so far, float64, shape (K,); of mini-batches alone.
        passed: the same within this pass over the data.
        iteration: iterations that are done.
        spread: sum of the distances in the last iteration, or with mini-batches in the last pass; None before it.
        running: the sum so far within this pass.
        done: whether it no longer falls.
    """

    centroids: Tensor
    seen: Tensor
    passed: Tensor
    iteration: int = 0
    spread: float | None = None
    running: float = 0.0
    done: bool = False

    @classmethod
    def at(cls, centroids: Tensor) -> State:
        """Return the state before the first iteration."""
        nothing = torch.zeros(len(centroids), dtype=torch.float64)
        return cls(centroids, nothing, nothing.clone())


class Checkpoint:
    """Keep states in a folder: safetensors, with JSON beside the tensors in the same file, so that they are of one moment.

    Args:
        folder: where; None keeps nothing.
        identity: what the states belong to, as JSON takes it.
        ranks: the processes; process 0 reads and writes, but for parts, which the process does that makes them.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], ranks: Ranks) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        self.ranks = ranks

    def load(self) -> State | None:
        """Return the last state, or None where there is none.

        Raises:
            ArtifactError: there is one of other features or options, or a damaged one; on every process alike.
        """
        file = self._file("iteration")
        if file is None:
            return None
        found = self.ranks.first(lambda: self._read(file))
        if found is None:
            return None
        fields: dict[str, Any] = {**found[0], **found[1]}
        return State(**fields)

    def save(self, state: State) -> None:
        """Keep a state in the place of the last one.

        Raises:
            ArtifactError: it cannot be written; on every process alike.
        """
        file = self._file("iteration")
        if file is not None:
            fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
            tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
            rest = {name: value for name, value in fields.items() if name not in tensors}
            self.ranks.first(lambda: self._write(file, tensors, rest))

    def load_part(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors of a finished part, or None where it is not finished."""
        file = self._file(name)
        found = None if file is None else self._read(file)
        return None if found is None else found[0]

    def save_part(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a finished part."""
        file = self._file(name)
        if file is not None:
            self._write(file, tensors, {})

    def _file(self, name: str) -> Path | None:
        return None if self.folder is None else Path(self.folder) / f"{name}.safetensors"

    def _write(self, file: Path, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        said = {"identity": json.dumps(self.identity), "state": json.dumps(rest)}
        with replaced_file(file) as partial:
            write_tensors(tensors, partial, said)

    def _read(self, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                said = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            identity, rest = json.loads(said["identity"]), json.loads(said["state"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ArtifactError(f"Expected a checkpoint of parallel_kmeans in {file}, got: {error}. Delete it.") from error
        if identity != self.identity:
            other = ", ".join(sorted(key for key in {*identity, *self.identity} if identity.get(key) != self.identity.get(key)))
            raise ArtifactError(
                f"Expected the checkpoint in {file.parent} to be of these features and options, got one of another {other}. "
                "Delete it, or name another folder."
            )
        return tensors, rest
