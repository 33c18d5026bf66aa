"""A command that dies at any of its writes, or finds the disk full, loses nothing that was finished."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from edits import TEXTS
from kills import ENDS, KILLED, PRELOADED, numbers, run
from readers import pictures
from run import FULL

from clip_negatives import catalogue, read_clusters
from clip_negatives.integrations.open_clip.untrusted import load_checkpoint

CASES = {"prepare": 8, "generate": 18, "train": 3, "compare": 3}  # writes at which each command ends, unless all are tried
CODES = {ENDS[0]: {0, KILLED}, ENDS[1]: {0, 2, -signal.SIGXFSZ}, ENDS[2]: {0, 2}}  # 0 if no later write was too large
TRAINED, TESTED = 96, 16  # pairs of the training data and of the test data

ENCODERS = "--image-encoder pixels:dim=8 --text-encoder tfidf:dim=8 --group-column item --clusterer kmeans:n_clusters=6"
TRAINING = "--train-data {data}/train.csv --dataset-type csv --model clip-negatives-tiny --batch-size 32 --lr 4e-3 --warmup 2"
TRAINING += " --workers 0 --precision fp32 --log-every-n-steps 1"
PREPARE = f"prepare {{data}}/train.csv out {ENCODERS}"
TRAIN = f"train --clusters {{data}}/clusters -- {TRAINING} --logs . --name out --resume latest --epochs 2 --save-frequency 1"
COMPARE = f"compare --output out --test-data {{data}}/test.csv --methods in_batch --seeds 1 {ENCODERS} -- {TRAINING} --epochs 1"
MEASURED = {"seconds_per_step", "train_seconds", "peak_memory_mib", "clusters"}  # differ between two runs of a comparison


@dataclass(frozen=True, slots=True)
class Command:
    """A command line with the folder of the data, and what an interrupted run leaves."""

    line: str
    finished: str = "-"  # pattern of files that an interrupted run must keep
    other: str = ""  # options of an earlier run whose result is replaced
    partial: bool = False  # whether an interrupted run may leave a part of the result
    room: int = 32  # bytes at which a write fails; the log of a training is smaller


COMMANDS = {
    "prepare": Command(PREPARE, other="--seed 7"),
    "generate": Command("generate {data}/clusters --output out/pairs.parquet", other="--seed 7"),
    "train": Command(TRAIN, "out/checkpoints/*.pt", partial=True, room=2**16),
    "compare": Command(COMPARE, "out/runs/*/result.json"),
}


def result(name: str, out: Path) -> dict[str, Any]:
    """Return the result of a command without dates, times and memory; a missing file is a FileNotFoundError."""
    if name == "train":
        files = (out / "checkpoints").glob("*.pt")
        return {file.name: load_checkpoint(str(file), map_location="cpu")["epoch"] for file in files}
    if name == "compare":
        runs = json.loads((out / "results.json").read_text())["runs"]
        return {"runs": [{key: value for key, value in run.items() if key not in MEASURED} for run in runs]}
    if name == "generate":
        return {"pairs.parquet": (out / "pairs.parquet").read_bytes()}
    manifest = json.loads((out / "manifest.json").read_text()) | {"created": None}
    return {**{file.name: file.read_bytes() for file in out.iterdir()}, "manifest.json": manifest}


def write_data(folder: Path) -> None:
    """Write `train.csv` with real listings, strange pictures and strange captions, and `test.csv` with real listings."""
    listings = catalogue.load("train")
    columns = {"title": listings.column("text"), "item": listings.column("item")}
    pairs = pd.DataFrame(columns).sort_values("item", kind="stable")[: TRAINED + TESTED]
    strange = [text for text in TEXTS if "\0" not in text and text.encode("utf-8", "ignore").decode() == text]
    images = dict(enumerate(pictures(32)[:-1], start=len(strange)))
    files = [folder / f"{number}.png" for number in range(len(pairs))]
    for number, (file, row) in enumerate(zip(files, pairs.index, strict=True)):
        file.write_bytes(images[number]) if number in images else listings.image(row).save(file)
    pairs["title"] = [*strange, *pairs["title"][len(strange) :]]
    pairs.insert(0, "filepath", files)
    for name, part in (("train", pairs[:TRAINED]), ("test", pairs[TRAINED:])):
        part.to_csv(folder / f"{name}.csv", sep="\t", index=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the data and their clusters."""
    assert all(find_spec(name) for name in PRELOADED)  # the fork server ignores unknown names, and each command is slow
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    code, text = run(PREPARE.format(data=folder), folder)
    assert code == 0, text
    return (folder / "out").rename(folder / "clusters").parent


def test_strange_samples_are_encoded(data: Path) -> None:
    """No strange picture or caption is left out, and its features are of unit norm, or 0 for a caption without words."""
    clusters = read_clusters(data / "clusters").clusters
    assert clusters.n_samples == TRAINED
    for features in (clusters.image_features, clusters.text_features):
        norms = features.norm(dim=1)
        assert bool((((norms - 1).abs() < 1e-3) | (norms == 0)).all())


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_finished_is_lost(name: str, data: Path, tmp_path: Path) -> None:
    """What a killed command leaves is absent or whole, and the next run ends with the result of an undisturbed one."""
    command, earlier = COMMANDS[name], tmp_path / "earlier"
    line = command.line.format(data=data)
    earlier.mkdir()
    code, text = run(line, earlier)
    assert code == 0, text
    assert all(0 < float(loss) < math.inf for loss in re.findall(r"Contrastive_loss: (\S+)", text))
    whole, cases = result(name, earlier / "out"), numbers(earlier.with_suffix(".writes"))
    if command.other:
        assert run(f"{line} {command.other}", earlier)[0] == 0
        assert result(name, earlier / "out") != whole
    chains = [[(at, end)] for at in cases for end in ENDS]
    if not FULL:  # one run after the other in one folder, so that each goes on after the last
        step = max(1, len(cases) // CASES[name])
        mixed = [(at, ENDS[place % 2 * 2]) for place, at in enumerate(cases[:: 3 * step])]
        chains = [[(at, ENDS[1]) for at in cases[::step]] + mixed]
    for number, chain in enumerate(chains):
        folder = tmp_path / str(number)
        shutil.copytree(earlier, folder) if command.other else folder.mkdir()
        out = folder / "out"
        allowed = [whole, result(name, out)] if command.other else [whole]
        for at, end in chain:
            finished = {file: file.stat().st_mtime_ns for file in folder.glob(command.finished)}
            code, text = run(line, folder, at, end, command.room)
            about = f"{name}, write {at}, {end}: exit code {code}\n{text[-900:]}"
            assert code in CODES[end], about
            assert "Traceback" not in text, about
            assert code != 2 or "Error: " in text, about
            assert finished == {file: file.stat().st_mtime_ns for file in finished}, about
            try:
                left = result(name, out)
            except FileNotFoundError:
                continue
            assert left in allowed or (command.partial and left.items() <= whole.items()), about
        code, text = run(line, folder)
        assert code == 0, f"{chain}: {text[-900:]}"
        assert result(name, out) == whole, chain
        left = [file.name for file in folder.rglob("*") if ".partial" in file.name or file.name.startswith(".")]
        # A process that is killed as it takes over the lock of another one leaves an empty file of filelock.
        assert [name for name in left if ".lock.break." not in name] == [], chain
        shutil.rmtree(folder)
