"""Training on tars whose captions are in another file than ``.txt``, or in a field of the ``.json``."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from clip_negatives.dataset import TarPairs, open_pairs
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.storage.labels_folder import write_labels
from tests.pairs import write_tar

from .conftest import ROWS, logged_losses


@pytest.fixture(scope="module")
def captioned(shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return copies of the tars: the captions of the first are in .cls files, those of the second in a json field cls."""
    folder = tmp_path_factory.mktemp("captioned")
    for place in ("000000", "000001"):
        file = Path(shards.replace("{000000..000001}", place))
        with tarfile.open(file) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in list(members):  # in the order of the tar
            stem, _, ending = name.rpartition(".")
            content = members.pop(name)
            if ending == "txt" and place == "000000":
                members[f"{stem}.cls"] = content + b"\n"
            elif ending == "txt":
                members[f"{stem}.json"] = json.dumps({"cls": content.decode()}).encode()
            elif ending != "json":
                members[name] = content
        write_tar(folder / file.name, members)
    return str(folder / Path(shards).name)


def _figures(arguments: list[str], name: str) -> tuple[list[str], dict[str, float]]:
    """Return the losses of a run and its validation."""
    folder = Path(arguments[arguments.index("--logs") + 1]) / name
    validation = json.loads((folder / "checkpoints" / "results.jsonl").read_text().splitlines()[-1])
    return logged_losses(folder / "out.log"), validation


def _stream(arguments: list[str], shards: str, *more: str) -> list[str]:
    place = arguments.index("--train-data")
    data = ["--train-data", shards, "--val-data", shards, "--dataset-type", "webdataset"]
    sizes = ["--train-num-samples", str(ROWS), "--val-num-samples", str(ROWS), "--save-frequency", "1"]
    return [*arguments[:place], *data, *sizes, *arguments[place + 4 :], "--aug-cfg", "scale=(1.0,1.0)", *more]


@pytest.mark.parametrize("kind", ["clusters", "labels", "uniform"])
def test_captions_are_trained_on_as_a_txt_would_be(
    arguments: list[str], shards: str, captioned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for size in ("SIZE", "INITIAL"):  # open_clip shuffles samples by the time of day
        monkeypatch.setattr(f"open_clip_train.data._SAMPLE_SHUFFLE_{size}", 1)
    figures = {}
    for name, tars, source in (("txt", shards, open_pairs(shards)), ("cls", captioned, TarPairs(captioned, text_field="cls"))):
        options = TrainOptions(sampler="in_batch", weighting="uniform")
        if kind != "uniform":
            folder = prepare(source, tmp_path / name, progress=False).path
            if kind == "labels":
                write_labels(folder, tmp_path / f"{name}-labels")
                folder = tmp_path / f"{name}-labels"
            options = TrainOptions(sampler="in_batch", clusters=folder)
        caption = ["--csv-caption-key", "cls"] if name == "cls" else []
        line = _stream(arguments, tars, "--name", name, *caption)
        train(line, options)
        losses, validation = _figures(line, name)
        figures[name] = [text.split()[0] for text in losses], validation["clip_val_loss"], validation["num_samples"]
    assert figures["cls"] == figures["txt"]
    assert figures["cls"][2] == ROWS


def test_other_captions_than_the_clustered_ones_stop(arguments: list[str], captioned: str, tmp_path: Path) -> None:
    first = captioned.replace("{000000..000001}", "000000")
    folder = prepare(TarPairs(first, text_field="cls"), tmp_path / "clusters", progress=False).path
    line = [*_stream(arguments, first, "--name", "run"), "--csv-caption-key", "none"]
    with pytest.raises(ArtifactError, match="is not the one that was clustered"):
        train(line, TrainOptions(sampler="in_batch", clusters=folder))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_no_caption_at_all_says_what_the_samples_have(
    arguments: list[str], captioned: str, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """Without clusters, nothing reads the tars before the training, and webdataset reads them for ever."""
    monkeypatch.setattr("clip_negatives.batches.streams.UNLABELLED_LIMIT", 2 * ROWS)
    first = captioned.replace("{000000..000001}", "000000")
    options = TrainOptions(sampler="in_batch", weighting="uniform")
    with pytest.raises(DataError) as caught:
        train([*_stream(arguments, first, "--name", "run"), "--workers", workers], options)
    assert str(caught.value) == (
        f"None of the first {2 * ROWS} samples has a caption: no .txt, only .png, .cls. "
        "Name the ending or the json field of the caption with --csv-caption-key."
    )
