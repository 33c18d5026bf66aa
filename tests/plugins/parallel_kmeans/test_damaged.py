"""A checkpoint that says something else than a state is refused with a sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_negatives.distributed.processes import ALONE
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import write_tensors
from clip_negatives_plugins.parallel_kmeans.checkpoint import Checkpoint, State


def kept(folder: Path, tensors: dict[str, Any], rest: Any, identity: Any = None) -> Checkpoint:
    """Return a checkpoint of a state in which some fields are others."""
    checkpoint = Checkpoint(folder, {"n": 4}, ALONE)
    state = dataclasses.asdict(State.at(torch.ones(2, 3)))
    given = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)} | tensors
    others = {name: value for name, value in state.items() if name not in given}
    said = {
        "identity": json.dumps(identity or checkpoint.identity),
        "state": json.dumps({**others, **rest} if isinstance(rest, dict) else rest),
    }
    write_tensors(given, folder / "iteration.safetensors", said)
    return checkpoint


def test_a_state_is_read(tmp_path: Path) -> None:
    state = kept(tmp_path, {}, {"iteration": 3, "spread": 2.5}).load()
    assert state is not None
    assert (state.iteration, state.spread, state.done) == (3, 2.5, False)


@pytest.mark.parametrize(
    ("tensors", "rest", "identity"),
    [
        ({}, {"more": 1}, None),
        ({}, {"iteration": -1}, None),
        ({}, {"iteration": True}, None),
        ({}, {"spread": "far"}, None),
        ({}, {"running": float("nan")}, None),
        ({}, {"done": 1}, None),
        ({}, [], None),
        ({}, {}, [1]),
        ({"centroids": torch.ones(2)}, {}, None),
        ({"centroids": torch.ones(2, 3, dtype=torch.int64)}, {}, None),
        ({"centroids": torch.full((2, 3), torch.nan)}, {}, None),
        ({"seen": torch.ones(3, dtype=torch.float64)}, {}, None),
    ],
)
def test_a_state_that_is_none(tmp_path: Path, tensors: dict[str, Any], rest: Any, identity: Any) -> None:
    with pytest.raises(ArtifactError, match=r"iteration\.safetensors is not a checkpoint of parallel_kmeans: .*Delete it"):
        kept(tmp_path, tensors, rest, identity).load()
