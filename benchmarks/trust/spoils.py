"""What is wrong with what a command is given: values that are no numbers, other data than before, files that are damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import webdataset as wds
from cases import Case, LostError, check_error
from hooks import PoisonedEncoder, PoisonedLoss
from subjects import PAIRS, copied, with_options, write_tar

STEPS = {"train": 6, "compare": 4}
"""Steps that all runs of a command have."""


def poison_features(case: Case) -> None:
    """Let a feature be no number: one that an encoder gives, or of clusters that come from elsewhere."""
    if case.subject.command == "prepare":
        encoder = PoisonedEncoder(case.chance.randrange(PAIRS), case.chance.choice(("image", "text")))
        check_error(case.run(setup=(encoder,)), "finite features")
    else:
        _poison_clusters(case)
        check_error(case.run(), "not finite")
        shutil.rmtree(case.folder / "clusters")
    case.check_between()
    case.go_on()


def spike(case: Case) -> None:
    """Let the loss of a step be so high that the weights after it are no numbers; the next run has no such step."""
    steps = STEPS[case.subject.command]
    check_error(case.run(setup=(PoisonedLoss(case.chance.randrange(steps)),)), "finite weights")
    case.check_between()
    case.go_on()


def change_data(case: Case) -> None:
    """Let a run be killed, and the data change before the next one: a text, the order, a picture of the same name."""
    name = case.subject.command
    if name == "generate":
        case.interrupt(signal.SIGKILL)
        shutil.copytree(case.data / "other", case.folder / "clusters")
        case.go_on(_undisturbed(case), anew=True)
        return
    case.data = copied(case.data, case.folder.with_name(f"{case.folder.name}.data"), images=name != "train")
    if name == "train":
        _change_trained(case)
        return
    case.interrupt(signal.SIGKILL)
    _change(case, case.chance.choice(("text", "order", "picture")))
    case.go_on(_undisturbed(case), anew=True)


def change_encoder(case: Case) -> None:
    """Let a run with other options be killed before, whose parts are of no use to this one."""
    case.interrupt(signal.SIGKILL, line=with_options(case.line, case.subject.other))
    # In the cache each has a place of its own, so that the one that was killed can still go on; elsewhere it has none.
    others = [] if case.subject.command == "prepare" else sorted((case.folder / "cache").glob(".clusters-*"))
    case.go_on(anew=True, others=others)
    if others:
        elsewhere = with_options(case.line, (*case.subject.other, "--output", str(case.folder / "elsewhere")))
        ended = case.run(line=elsewhere)
        if ended.code != 0 or any(other.exists() for other in others):
            raise LostError(f"the other run did not go on: it ended with {ended.code}: {ended.said[-600:]}")


def damage(case: Case) -> None:
    """Cut a file that an earlier run left: it is made again, or the command says which it is."""
    if case.subject.command == "generate" and case.chance.random() < 0.5:
        _damage_clusters(case)
        return
    case.interrupt(signal.SIGKILL)
    if case.subject.command == "train":
        files = [Path(file) for file in sorted(case.subject.done(case.folder))][-1:]
    else:
        some = case.folder.rglob("*")
        files = sorted(file for file in some if file.is_file() and "cache" not in file.parts and file.suffix != ".log")
    if files:
        file = case.chance.choice(files)
        _cut(case, file)
        ended = case.run()
        if ended.code != 0:
            check_error(ended, str(file))
            file.unlink()
    case.go_on(anew=True)


def _damage_clusters(case: Case) -> None:
    """Cut or change a file of the clusters folder that is read."""
    shutil.copytree(case.data / "clusters", case.folder / "clusters")
    _cut(case, case.chance.choice(sorted((case.folder / "clusters").iterdir())), change=True)
    check_error(case.run(), str(case.folder / "clusters"))
    shutil.rmtree(case.folder / "clusters")
    case.go_on()


def _cut(case: Case, file: Path, *, change: bool = False) -> None:
    """Cut a file, or change one of its bytes where it is one whose sum is kept and may be changed."""
    content = bytearray(file.read_bytes())
    place = case.chance.randrange(max(1, len(content)))
    if change and file.suffix == ".parquet" and case.chance.random() < 0.5:
        content[place] ^= 0xFF
    else:
        del content[place:]
    file.write_bytes(content)


def _undisturbed(case: Case) -> Any:
    """Return what an undisturbed run makes of the changed data."""
    beside = dataclasses.replace(case, folder=case.folder.with_name(f"{case.folder.name}.fresh"))
    beside.folder.mkdir()
    if (case.folder / "clusters").exists():
        shutil.copytree(case.folder / "clusters", beside.folder / "clusters")
    ended = beside.run()
    if ended.code != 0:
        raise LostError(f"an undisturbed run of the changed data ended with {ended.code}: {ended.said[-600:]}")
    return case.subject.content(beside.folder)


def _change_trained(case: Case) -> None:
    """Change data whose clusters are named: other texts and paths are refused, another picture under its path is told of."""
    way = case.chance.choice(("text", "order", "picture"))
    if way != "picture":
        _change(case, way)
        check_error(case.run(), "clusters of the data that is trained on", "of row")
        return
    rows = case.chance.sample((case.data / "train.csv").read_text().splitlines()[1:], 2)
    picture, other = (Path(row.split("\t")[0]) for row in rows)
    content, had = picture.read_bytes(), picture.stat()
    try:
        picture.write_bytes(other.read_bytes())
        ended = case.run()
    finally:
        picture.write_bytes(content)
        os.utime(picture, ns=(had.st_atime_ns, had.st_mtime_ns))
    if ended.code != 0 or f"{picture} among them" not in ended.said:
        raise LostError(f"ended with {ended.code}, and said nothing of a picture that changed: {ended.said[-600:]}")


def _change(case: Case, way: str) -> None:
    """Change the data in one way."""
    if case.subject.tars:
        _change_tar(case, way)
        return
    file = case.data / "train.csv"
    head, *rows = file.read_text().splitlines()
    place = case.chance.randrange(len(rows) - 1)
    if way == "text":
        path, text, item = rows[place].split("\t")
        rows[place] = "\t".join((path, f"{text} changed", item))
    elif way == "order":
        rows[place], rows[place - 1] = rows[place - 1], rows[place]
    else:
        one, other = (Path(rows[row].split("\t")[0]) for row in (place, place + 1))
        one.write_bytes(other.read_bytes())
    file.write_text("\n".join([head, *rows]) + "\n")


def _change_tar(case: Case, way: str) -> None:
    """Change a tar in one way; its size stays."""
    file = case.chance.choice(sorted(case.data.glob("train-*.tar")))
    samples = list(wds.WebDataset(str(file), shardshuffle=False))
    place = case.chance.randrange(len(samples) - 1)
    if way == "text":
        samples[place]["txt"] = samples[place]["txt"].decode()[::-1].encode()
    elif way == "order":
        samples[place], samples[place + 1] = samples[place + 1], samples[place]
    else:
        samples[place]["png"], samples[place + 1]["png"] = samples[place + 1]["png"], samples[place]["png"]
    write_tar(file, samples)


def _poison_clusters(case: Case) -> None:
    """Write clusters with a centroid that is no number, whose sums are right."""
    from safetensors.torch import load_file, save_file

    folder = case.folder / "clusters"
    shutil.copytree(case.data / "clusters", folder)
    file = folder / "clusters.safetensors"
    tensors = load_file(file)
    tensors["image_centroids"][0, 0] = float("nan")
    save_file(tensors, file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
