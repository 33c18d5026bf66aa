"""Checkpoints of the iterations; a restart on any number of processes continues from the last one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_negatives.distributed.processes import Processes
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.safe_reading import TensorSpec, parse_json, read_tensors_and_metadata

FORMAT = 1  # version of the file format
STATE: dict[str, TensorSpec] = {"centroids": (("float32",), 2), "seen": (("float64",), 1), "passed": (("float64",), 1)}


@dataclass(slots=True)
class State:
    """State of k-means between two iterations, the same on all processes."""

    centroids: Tensor  # float32, shape (K, D)
    seen: Tensor  # number of rows in the mean of each centroid, float64, shape (K,); mini-batches only
    passed: Tensor  # rows assigned to each centroid in this pass over the data, float64, shape (K,)
    iteration: int = 0  # finished iterations
    spread: float | None = None  # sum of the distances in the last iteration (mini-batches: in the last pass)
    running: float = 0.0  # sum of the distances in this pass so far
    done: bool = False  # whether the spread has stopped falling

    @classmethod
    def at(cls, centroids: Tensor) -> State:
        """Return the state before the first iteration."""
        zeros = torch.zeros(len(centroids), dtype=torch.float64)
        return cls(centroids, zeros, zeros.clone())


class Checkpoint:
    """Checkpoint folder of one clustering. `identity` has its features and options.

    A safetensors file holds the tensors, and its metadata all other fields as JSON. Rank 0 reads and writes the states. The
    parts are read and written by the process that computes them. Without a folder, nothing is stored.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], processes: Processes) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        self.processes = processes

    def load(self) -> State | None:
        """Return the last state, or None; a damaged state, or one of another clustering, is an `ArtifactError`."""
        file = self._file("iteration")

        def read() -> State | None:
            content = self._read(file, STATE)
            if file is None or content is None:
                return None
            fields = {**content[0], **content[1]}
            if (fault := _fault(fields)) is not None:
                raise _damaged(file, fault)
            return State(**fields)

        return None if file is None else self.processes.first(read)

    def save(self, state: State) -> None:
        """Replace the last state."""
        if (file := self._file("iteration")) is not None:
            fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
            tensors = {name: fields.pop(name) for name in STATE}
            self.processes.first(lambda: self._write(file, tensors, fields))

    def part(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return the stored tensors of a part, or make and store them."""
        file = self._file(name)
        if (content := self._read(file, {})) is not None:
            return content[0]
        tensors = make()
        self._write(file, tensors, {})
        return tensors

    def _file(self, name: str) -> Path | None:
        return None if self.folder is None else Path(self.folder) / f"{name}.safetensors"

    def _write(self, file: Path | None, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
        if file is None:
            return
        metadata = {"identity": json.dumps(self.identity), "state": json.dumps(fields)}
        with replaced_file(file) as partial:
            write_tensors(tensors, partial, metadata)

    def _read(self, file: Path | None, kinds: Mapping[str, TensorSpec]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if file is None or not file.exists():
            return None
        try:
            tensors, metadata = read_tensors_and_metadata(file, kinds)
            identity, fields = parse_json(metadata.get("identity", "")), parse_json(metadata.get("state", ""))
        except (OSError, ValueError) as error:
            raise _damaged(file, str(error)) from error
        if not isinstance(identity, dict) or not isinstance(fields, dict):
            raise _damaged(file, "no identity or no state")
        if identity != self.identity:
            keys = sorted(key for key in {*identity, *self.identity} if identity.get(key) != self.identity.get(key))
            raise ArtifactError(
                f"The checkpoint in {file.parent} belongs to another clustering: it differs in {', '.join(keys)}. "
                "Delete the checkpoint, or use another folder."
            )
        return {name: tensor.clone() for name, tensor in tensors.items()}, fields


def _fault(fields: Mapping[str, Any]) -> str | None:
    """Return why the fields are not a valid state, or None."""
    names = {field.name for field in dataclasses.fields(State)}
    if set(fields) != names:
        return f"its fields are not {', '.join(sorted(names))}"
    numbers = [fields["running"], 0.0 if fields["spread"] is None else fields["spread"]]
    if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        return "a distance is not a finite number"
    if type(fields["iteration"]) is not int or fields["iteration"] < 0 or type(fields["done"]) is not bool:
        return f"iteration is {fields['iteration']!r}, done is {fields['done']!r}"
    if not len(fields["centroids"]) == len(fields["seen"]) == len(fields["passed"]):
        return "its tensors differ in length"
    return None if bool(fields["centroids"].isfinite().all()) else "a centroid is not finite"


def _damaged(file: Path, fault: str) -> ArtifactError:
    return ArtifactError(f"{file} is not a checkpoint of parallel_kmeans: {fault}. Delete it.")
