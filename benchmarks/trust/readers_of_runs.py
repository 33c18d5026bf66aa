"""Readers of what a run is given and what it keeps: options, results, checkpoints."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

import torch
from formats import change_tensors
from mutations import change_bytes, change_json, change_text, json_bytes
from reader import Reader

from clip_negatives import registry
from clip_negatives.anchors import AnchorLoss
from clip_negatives.atomic import write_tensors
from clip_negatives.compare.methods import Method
from clip_negatives.compare.output import cost_table, ranks_table
from clip_negatives.compare.queries import NAME, read_queries
from clip_negatives.compare.study import FIGURES, _summarise, read_run
from clip_negatives.errors import ArtifactError, InputError, PluginError
from clip_negatives.integrations.loss_state import read_state
from clip_negatives.integrations.open_clip.untrusted import load_checkpoint
from clip_negatives_parallel_kmeans.checkpoint import Checkpoint, State
from clip_negatives_parallel_kmeans.ranks import Ranks


def options(scratch: Path) -> Reader:
    """Return the reader of ``name:key=value,...``."""
    host, kinds = registry.default_registry(), ("clusterer", "loss_weighting")
    known = {kind: host.items(kind) for kind in kinds}

    def make(rng: Random) -> tuple[str, bytes]:
        kind = rng.choice(kinds)
        item = rng.choice(known[kind])
        numbers = (
            "0",
            "-1",
            "1",
            "2",
            "1e3",
            "nan",
            "inf",
            "-inf",
            "1" * 30,
            "1" * 5000,
            "1_0",
            "٣",
            "0.5",
            "none",
            "true",
            "image",
            "",
        )
        given = [
            f"{option.name}={rng.choice((str(option.default), *numbers))}" for option in item.options if rng.random() < 0.4
        ]
        spec = f"{item.name}:{','.join(given)}"
        return kind, (change_text(spec, rng) if rng.random() < 0.6 else spec).encode("utf-8", "surrogatepass")

    def read(kind: str, content: bytes) -> None:
        spec = content.decode("utf-8", "surrogatepass")
        host.resolve(kind, spec)
        registry.create(kind, spec)

    return Reader("names, keys, values and separators changed", (PluginError, InputError), make, read)


def results(scratch: Path) -> Reader:
    """Return the readers of what a comparison keeps: what does not fit is made again."""
    identity, outcome = "i", dict.fromkeys(FIGURES, 0.5)
    spec = {"name": "in_batch", "sampler": "in_batch", "weighting": "uniform", "temperature": None}
    run = {
        "method": spec,
        "seed": 0,
        "steps": 3,
        "queries": 2,
        "losses": [1.0, 2.0],
        "false_negatives_truth": "text",
        **outcome,
    }
    run |= {f"chance_rank_{k}": 0.1 for k in (1, 5, 10)}
    write_tensors(
        {"rank": torch.tensor([1, 2], dtype=torch.int32), "top": torch.tensor([0, 1], dtype=torch.int32)}, scratch / NAME
    )
    queries = (scratch / NAME).read_bytes()

    def make(rng: Random) -> tuple[str, bytes]:
        if rng.random() < 0.4:
            return NAME, change_tensors(queries, rng)
        return "result.json", json_bytes(change_json({"identity": identity, "run": run}, rng), rng)

    def read(kind: str, content: bytes) -> bool:
        (scratch / kind).write_bytes(content)
        if kind == NAME:
            return read_queries(scratch) is None
        found = read_run(scratch / kind, identity)
        if found is not None:
            name = found["method"]["name"]
            comparison = _summarise(
                {"seeds": 1},
                [found, run],
                [
                    Method("in_batch", "in_batch", "uniform"),
                    *([Method(name, "in_batch", "uniform")] if name != "in_batch" else []),
                ],
            )
            ranks_table(comparison), cost_table(comparison)
        return found is None

    return Reader("results and answers of finished runs changed", (), make, read, "left aside and made again")


class _Remembering(AnchorLoss):
    """A loss that remembers something of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))


def checkpoints(scratch: Path) -> Reader:
    """Return the readers of checkpoints: of open_clip's, of the loss's, and of k-means'."""
    ranks, identity = Ranks(), {"n": 4}
    Checkpoint(scratch, identity, ranks).save(State.at(torch.ones(2, 3)))
    write_tensors({"seen": torch.ones(4)}, scratch / "loss.safetensors")
    torch.save(
        {"epoch": 1, "name": "run", "state_dict": {"w": torch.ones(2)}, "optimizer": {"state": {}, "param_groups": []}},
        scratch / "epoch.pt",
    )
    whole = {name: (scratch / name).read_bytes() for name in ("iteration.safetensors", "loss.safetensors", "epoch.pt")}
    size = struct.unpack("<Q", whole["iteration.safetensors"][:8])[0]
    header = json.loads(whole["iteration.safetensors"][8 : 8 + size])  # whose metadata come in any order
    text = json.dumps(header, sort_keys=True).encode()
    whole["iteration.safetensors"] = struct.pack("<Q", len(text)) + text + whole["iteration.safetensors"][8 + size :]

    def make(rng: Random) -> tuple[str, bytes]:
        name = rng.choice(list(whole))
        return name, (change_bytes if name.endswith(".pt") else change_tensors)(whole[name], rng)

    def read(kind: str, content: bytes) -> None:
        (scratch / kind).write_bytes(content)
        if kind == "epoch.pt":
            load_checkpoint(str(scratch / kind), map_location="cpu")
        elif kind == "loss.safetensors":
            read_state(_Remembering(), scratch / kind)
        else:
            state = Checkpoint(scratch, identity, ranks).load()
            assert state is not None
            assert len(state.centroids) == len(state.seen) == len(state.passed)
            assert state.iteration >= 0 <= state.running < float("inf")

    return Reader("bytes, headers and numbers changed", (ArtifactError,), make, read)
