"""What cannot be trained is refused with a sentence and exit code 2, before anything is written or waited for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from clip_negatives import read_clusters
from clip_negatives.cli import main
from clip_negatives.dataset import open_pairs
from clip_negatives.integrations.open_clip.command_line import parsed
from clip_negatives.integrations.open_clip.train_set import steps_of_epoch
from clip_negatives.loss import NegativesClipLoss
from clip_negatives.prepare import prepare

from .conftest import BATCH, ROWS

BASELINE = ["--sampler", "in_batch", "--weighting", "uniform"]


def refusal(*arguments: str) -> str:
    """Return the sentence of a refusal."""
    shown = CliRunner().invoke(main, list(arguments))
    assert shown.exit_code == 2, (shown.output, shown.stderr, shown.exception)
    assert shown.stderr.startswith("Error: "), shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1, shown.stderr
    return shown.stderr


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (["--model", "ViT-B-23"], "Did you mean 'ViT-B-32'"),
        (["--pretrained", "laion"], "it has no known tags"),
        (["--model", "ViT-B-32", "--pretrained", "laion2b"], "laion2b_s34b_b79k"),
        (["--seed", "-1"], "--seed of at least 0"),
        (["--batch-size", "0"], "--batch-size of at least 1"),
        (["--batch-size", "1000"], f"got {ROWS}"),
        (["--accum-freq", "7"], "--accum-freq 7, got 6"),
        (["--resume", "absent.pt"], "absent.pt, which is not there"),
        (["--val-data", "absent.csv"], "absent.csv, which is not there"),
        (["--foo", "1"], "unrecognized arguments: --foo 1"),
        (["--epochs", "x"], "invalid int value: 'x'"),
        (["--csv-separator", ""], "what stands between columns"),
    ],
)
def test_arguments_of_open_clip(arguments: list[str], theirs: list[str], words: str, tmp_path: Path) -> None:
    assert words in refusal("train", *BASELINE, "--", *arguments, *theirs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (["--backend", "foo"], "Expected a backend among auto"),
        (["--backend", "triton"], "Use backend 'auto'"),
        (["--refresh-every", "1", "--clusterer", "kmens"], "Did you mean 'kmeans'"),
        (["--refresh-every", "1", "--text-clusterer", "kmeans:n_clusters=1000"], f"samples ({ROWS}), got n_clusters=1000"),
        (["--refresh-every", "1", "--clusterer", "kmeans:seed=99999999999"], "Expected seed within"),
    ],
)
def test_our_options(
    arguments: list[str], ours: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "triton" in ours:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        pytest.importorskip("torch").cuda.is_available() and pytest.skip("it runs here")
    folder = tmp_path / "clusters"
    prepare(open_pairs(arguments[1]), folder, progress=False)
    assert words in refusal("train", "--clusters", str(folder), *ours, "--", *arguments)
    assert [item.name for item in tmp_path.iterdir()] == ["clusters"]


def test_logs_below_a_file(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be" in refusal("train", *BASELINE, "--", *arguments, "--logs", str(tmp_path / "file" / "logs"))


def test_clusters_of_other_pictures(arguments: list[str], train_csv: Path, tmp_path: Path) -> None:
    header, *rows = train_csv.read_text().splitlines()
    swapped = tmp_path / "swapped.csv"
    files = [row.split("\t", 1)[0] for row in rows]
    swapped.write_text("\n".join([header, *(f"{a}\t{b.split(chr(9), 1)[1]}" for a, b in zip(files[::-1], rows, strict=True))]))
    prepare(open_pairs(str(swapped)), tmp_path / "clusters", progress=False)
    shown = refusal("train", "--clusters", str(tmp_path / "clusters"), "--", *arguments)
    assert "the image of row 0 differs" in shown


@pytest.fixture
def stream(shards: str, tmp_path: Path) -> list[str]:
    """Return open_clip's arguments for the two tars, copied with their sizes."""
    first = Path(shards.replace("{000000..000001}", "000000"))
    for file in (first, first.with_name(first.name.replace("000000", "000001")), first.with_name("sizes.json")):
        shutil.copy(file, tmp_path)
    return [
        *("--train-data", str(tmp_path / "test-{000000..000001}.tar"), "--dataset-type", "webdataset", "--workers", "0"),
        *("--model", "clip-negatives-tiny", "--batch-size", str(BATCH), "--device", "cpu", "--logs", str(tmp_path / "logs")),
    ]


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (["--batch-size", "150"], None),  # one process reads both tars
        (["--batch-size", "200"], "fill a batch of 200"),
        (["--batch-size", "97", "--workers", "2"], f"fill a batch of 97 for each of 2 loader processes, got {ROWS // 2}"),
        (["--batch-size", "97", "--workers", "2", "--dataset-resampled"], None),
        (["--workers", "3"], "at least 3 shards"),
    ],
)
def test_streams_that_cannot_fill_a_batch(stream: list[str], theirs: list[str], words: str | None) -> None:
    """open_clip would wait for it without end."""
    from clip_negatives.integrations.open_clip.command_line import check_arguments
    from clip_negatives.integrations.open_clip.train_options import TrainOptions

    if words is None:
        assert check_arguments([*stream, *theirs], TrainOptions(sampler="in_batch", weighting="uniform")) is not None
    else:
        assert words in refusal("train", *BASELINE, "--", *stream, *theirs)


def test_streams_of_unknown_size(stream: list[str], tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text(json.dumps({"test-000000.tar": 96}))
    assert "samples of every shard" in refusal("train", *BASELINE, "--", *stream)
    (tmp_path / "sizes.json").unlink()
    assert "Expected --train-num-samples" in refusal("train", *BASELINE, "--", *stream)
    (tmp_path / "__len__").write_text(str(ROWS))  # as open_clip reads it too
    assert steps_of_epoch(parsed(stream)) == ROWS // BATCH


@pytest.mark.parametrize("sizes", ["[" * 100_000, "[]", '{"test-000000.tar": Infinity, "test-000001.tar": 1}'])
def test_sizes_that_are_none(stream: list[str], tmp_path: Path, sizes: str) -> None:
    (tmp_path / "sizes.json").write_text(sizes)
    assert "samples of every shard" in refusal("train", *BASELINE, "--", *stream)
    (tmp_path / "sizes.json").write_text('{"test-000000.tar": -9, "test-000001.tar": 1}')
    assert "a negative number" in refusal("train", *BASELINE, "--", *stream)


@pytest.mark.parametrize("length", ["many", "__import__('os').system('touch ran')", "(" * 9999, "-3", "[1]"])
def test_length_that_is_none(stream: list[str], tmp_path: Path, length: str) -> None:
    (tmp_path / "sizes.json").unlink()
    (tmp_path / "__len__").write_text(length)
    assert "number of samples in __len__" in refusal("train", *BASELINE, "--", *stream)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (["--methods", "weighted_infonce:beta=-1"], [], "beta"),
        (["--test-data", "absent.csv"], [], "absent.csv, which is not there"),
        (["--image-encoder", "pixls"], [], "Did you mean 'pixels'"),
        (["--clusterer", "kmeans:n_iter=0"], [], "n_iter of at least 1"),
        ([], ["--foo", "1"], "unrecognized arguments: --foo 1"),
        ([], ["--model", "ViT-B-23"], "Did you mean 'ViT-B-32'"),
        ([], ["--batch-size", "1000"], "Use a smaller --batch-size"),
    ],
)
def test_comparisons_are_refused_before_the_first_run(
    ours: list[str], theirs: list[str], words: str, train_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ["--output", str(out), "--test-data", str(train_csv), *ours]
    shown = refusal("compare", *given, "--", "--train-data", str(train_csv), "--batch-size", str(BATCH), *theirs)
    assert words in shown
    assert not out.exists()


@pytest.mark.parametrize("command", ["prepare", "meter", "generate"])
def test_seeds_below_zero(command: str, train_csv: Path, tmp_path: Path) -> None:
    where = [str(train_csv), str(tmp_path / "out")] if command == "prepare" else [str(tmp_path / "clusters")]
    if command != "prepare":
        prepare(open_pairs(str(train_csv)), tmp_path / "clusters", progress=False)
    size = ["--batch-size", str(BATCH)] if command == "meter" else []
    assert "seed" in refusal(command, *where, *size, "--seed", "-1")
    assert [item.name for item in tmp_path.iterdir()] == ([] if command == "prepare" else ["clusters"])


def test_more_clusters_than_samples_leave_nothing_behind(train_csv: Path, tmp_path: Path) -> None:
    shown = refusal("prepare", str(train_csv), str(tmp_path / "out"), "--clusterer", "kmeans:n_clusters=1000")
    assert "got n_clusters=1000" in shown
    assert list(tmp_path.iterdir()) == []


def test_more_pairs_than_there_are(train_csv: Path, tmp_path: Path) -> None:
    prepare(open_pairs(str(train_csv)), tmp_path / "clusters", progress=False)
    shown = CliRunner().invoke(
        main, ["generate", str(tmp_path / "clusters"), "-o", str(tmp_path / "pairs.parquet"), "--per-image", "100000"]
    )
    assert shown.exit_code == 0
    assert 0 < int(shown.output.split(": ")[1].split()[0]) < ROWS * (ROWS - 1)
    assert read_clusters(tmp_path / "clusters").clusters.n_samples == ROWS


@pytest.mark.parametrize("change", ["gone", "other arguments"])
def test_an_open_clip_of_another_structure(change: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip_train.main

    if change == "gone":
        monkeypatch.delattr(open_clip_train.main, "create_loss")
    else:
        monkeypatch.setattr(open_clip_train.main, "create_loss", lambda task: None)
    shown = refusal("train", *BASELINE, "--", *arguments)
    assert "Expected open_clip_torch 3.x, whose training has create_loss(args)" in shown
    assert "Install open_clip_torch>=3.0,<4" in shown


def checkpoint(arguments: list[str], epoch: int) -> Path:
    return Path(arguments[arguments.index("--logs") + 1]) / "run" / "checkpoints" / f"epoch_{epoch}.pt"


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\3\4" + bytes(1000)])
@pytest.mark.parametrize("latest", [True, False])
def test_damaged_checkpoint(arguments: list[str], content: bytes, latest: bool) -> None:
    file = checkpoint(arguments, 2)
    file.parent.mkdir(parents=True)
    torch.save({"epoch": 1}, file.with_name("epoch_1.pt"))
    file.write_bytes(content)
    resumed = ["--resume", "latest" if latest else str(file), "--name", "run"]
    shown = refusal("train", *BASELINE, "--", *arguments, *resumed)
    assert f"got {file}, which cannot be read" in shown
    assert ("Remove it: --resume latest goes on after the one before." in shown) == latest


def test_full_disk_leaves_no_half_checkpoint(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before stays, and nothing has the name of the one that found no room."""
    save = torch.save

    def fill(obj: object, file: Path) -> None:
        save(obj, file)
        if "epoch_2" in str(file):
            os.truncate(file, 1000)
            raise RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(torch, "save", fill)
    shown = CliRunner().invoke(main, ["train", *BASELINE, "--", *arguments, "--epochs", "2", "--name", "run"])
    assert torch.save is fill
    assert shown.exit_code == 2
    assert "Error: Expected to write" in shown.stderr
    assert "PytorchStreamWriter failed writing file" in shown.stderr
    folder = checkpoint(arguments, 1).parent
    assert [file.name for file in folder.iterdir()] == ["epoch_1.pt"]
    torch.load(folder / "epoch_1.pt", weights_only=True)


def test_weights_that_are_no_numbers_are_not_kept(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a step whose loss leaves the range of numbers; the checkpoint of the epoch before stays the last one."""
    forward, steps = NegativesClipLoss.forward, iter(range(1000))

    def spiking(self: NegativesClipLoss, *given: Any, **named: Any) -> Any:
        losses = forward(self, *given, **named)
        spike = next(steps) == ROWS // BATCH + 1
        return {name: loss * float("inf") for name, loss in losses.items()} if spike else losses

    monkeypatch.setattr(NegativesClipLoss, "forward", spiking)
    shown = CliRunner().invoke(main, ["train", *BASELINE, "--", *arguments, "--epochs", "3", "--name", "run"])
    assert shown.exit_code == 2
    assert "Expected finite weights after epoch 2, got NaN or infinity in " in shown.stderr
    assert [file.name for file in checkpoint(arguments, 1).parent.iterdir()] == ["epoch_1.pt"]


def test_file_that_open_clip_cannot_write_is_named(arguments: list[str]) -> None:
    file = checkpoint(arguments, 1).parents[1] / "params.txt"
    file.mkdir(parents=True)
    shown = CliRunner().invoke(main, ["train", *BASELINE, "--", *arguments, "--name", "run"])
    assert shown.exit_code == 2
    assert f"Error: Expected open_clip to read and write its files, got: Is a directory ({file})." in shown.stderr
