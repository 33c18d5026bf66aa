"""What is kept after each iteration, so that a restart with any number of processes goes on there."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_negatives.atomic import replaced_file, write_tensors
from clip_negatives.errors import ArtifactError
from clip_negatives.reading import Kind, parse_json, read_tensors_and_metadata
from clip_negatives_parallel_kmeans.ranks import Ranks

FORMAT = 1
"""Version of the files."""

STATE: dict[str, Kind] = {"centroids": (("float32",), 2), "seen": (("float64",), 1), "passed": (("float64",), 1)}
"""What the tensors of a state are."""


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
        found = self.ranks.first(lambda: self._read(file, STATE))
        if found is None:
            return None
        fields: dict[str, Any] = {**found[0], **found[1]}
        if (fault := _fault(fields)) is not None:
            raise _damaged(file, fault)
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
        found = None if file is None else self._read(file, {})
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

    def _read(self, file: Path, kinds: Mapping[str, Kind]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not file.exists():
            return None
        try:
            tensors, said = read_tensors_and_metadata(file, kinds)
            identity, rest = parse_json(said.get("identity", "")), parse_json(said.get("state", ""))
        except (OSError, ValueError) as error:
            raise _damaged(file, str(error)) from error
        if not isinstance(identity, dict) or not isinstance(rest, dict):
            raise _damaged(file, "no identity or no state")
        if identity != self.identity:
            other = ", ".join(sorted(key for key in {*identity, *self.identity} if identity.get(key) != self.identity.get(key)))
            raise ArtifactError(
                f"Expected the checkpoint in {file.parent} to be of these features and options, got one of another {other}. "
                "Delete it, or name another folder."
            )
        return {name: tensor.clone() for name, tensor in tensors.items()}, rest


def _fault(fields: Mapping[str, Any]) -> str | None:
    """Say what keeps fields from being those of a state, or None."""
    names = {field.name for field in dataclasses.fields(State)}
    if set(fields) != names:
        return f"fields that are not {', '.join(sorted(names))}"
    numbers = [fields["running"], 0.0 if fields["spread"] is None else fields["spread"]]
    if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        return "distances that are no numbers"
    if type(fields["iteration"]) is not int or fields["iteration"] < 0 or type(fields["done"]) is not bool:
        return f"iteration {fields['iteration']!r}, done {fields['done']!r}"
    if not len(fields["centroids"]) == len(fields["seen"]) == len(fields["passed"]):
        return "tensors of different lengths"
    return None if bool(fields["centroids"].isfinite().all()) else "centroids that are not finite"


def _damaged(file: Path, fault: str) -> ArtifactError:
    return ArtifactError(f"Expected a checkpoint of parallel_kmeans in {file}, got: {fault}. Delete it.")
