"""What cannot be trained is refused with a sentence and exit code 2, before anything is written or waited for."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from clip_negatives import read_clusters
from clip_negatives.advice import named
from clip_negatives.cli import main
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ArtifactError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.integrations.open_clip.arguments import parsed
from clip_negatives.integrations.open_clip.seam import Negatives
from clip_negatives.integrations.open_clip.train_set import steps_of_epoch
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.pipelines.prepare import prepare

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
        (["--pretrained", "laion"], "this model has no tags"),
        (["--model", "ViT-B-32", "--pretrained", "laion2b"], "laion2b_s34b_b79k"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--batch-size", "1"], "--batch-size 1 on one process has no incorrect pair"),
        (["--batch-size", "1000"], f"has {ROWS}"),
        (["--accum-freq", "7"], "--accum-freq 7 is more than the 6 batches"),
        (["--resume", "absent.pt"], "file absent.pt does not exist"),
        (["--val-data", "absent.csv"], "csv file absent.csv does not exist"),
        (["--foo", "1"], "unrecognized arguments: --foo 1"),
        (["--epochs", "x"], "invalid int value: 'x'"),
        *[([option, "nan"], f"{option} must be a finite number, got nan") for option in ("--lr", "--beta1", "--eps", "--wd")],
        (["--grad-clip-norm", "inf"], "--grad-clip-norm must be a finite number, got inf"),
        (["--image-mean", "0.5", "inf", "0.5"], "--image-mean must be a finite number"),
        (["--lr", "-1"], "open_clip cannot start with these arguments: Invalid learning rate: -1.0."),
        (["--opt", "sgd"], "Unknown optimizer sgd"),
        (["--warmup", "-1"], "--warmup must be at least 0"),
        (["--log-every-n-steps", "0"], "--log-every-n-steps must be at least 1"),
        (["--seed", str(2**32)], "--seed must be below 2^32"),
        (["--lr-scheduler", "linear"], "--lr-scheduler must be cosine, const or const-cooldown, got 'linear'"),
        (["--lr-scheduler", "const-cooldown"], "Add --epochs-cooldown"),
        (["--device", "foo"], "--device must name a device of torch"),
        (["--lock-text"], "Add --lock-text-freeze-layer-norm"),
        (["--imagenet-val", "absent"], "No such file or directory: 'absent'"),
        (["--imagenet-v2", "absent"], "open_clip cannot start with these arguments: "),
        (["--force-image-size", "0"], "open_clip cannot start with these arguments: "),
        (["--force-context-length", "0"], "Please set a valid context length"),
        (["--aug-cfg", "scale"], "--aug-cfg needs settings name=value"),
        (["--resume", "http://127.0.0.1:9/a.pt"], "The checkpoint http://127.0.0.1:9/a.pt cannot be read: "),
        (["--val-data", "http://127.0.0.1:9/a.csv"], "The csv file http://127.0.0.1:9/a.csv cannot be read: "),
    ],
)
def test_arguments_of_open_clip(arguments: list[str], theirs: list[str], words: str, tmp_path: Path) -> None:
    assert words in refusal("train", *BASELINE, "--", *arguments, *theirs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (["--backend", "foo"], "There is no backend 'foo'"),
        (["--backend", "triton"], "Use backend 'auto'"),
        (["--refresh-every", "1", "--clusterer", "kmens"], "Did you mean 'kmeans'"),
        (["--refresh-every", "1", "--text-clusterer", "kmeans:n_clusters=1000"], f"number of samples ({ROWS})"),
        (["--refresh-every", "1", "--clusterer", "kmeans:seed=99999999999"], "seed of kmeans must be at least 0 and below"),
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


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK must be a whole number of at least 0, not ''"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE must be a whole number of at least 1, not 'abc'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "but MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"SLURM_NTASKS": "two"}, "A variable of Slurm or MPI has no whole number"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "but MASTER_ADDR is not set"),
    ],
)
@pytest.mark.parametrize("command", ["train", "prepare", "generate"])
def test_environment_of_a_launcher(
    arguments: list[str], command: str, names: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command != "train" and "SLURM_NTASKS" in names:
        pytest.skip("only open_clip reads the variables of Slurm")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    rest = {"train": [*BASELINE, "--", *arguments], "prepare": [arguments[1], str(tmp_path / "out")], "generate": ["absent"]}
    assert words in refusal(command, *rest[command])
    assert list(tmp_path.iterdir()) == []


def test_logs_below_a_file(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal("train", *BASELINE, "--", *arguments, "--logs", str(tmp_path / "file" / "logs"))


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
        (
            ["--batch-size", "97", "--workers", "2"],
            f"fill a batch of 97 in each of 2 loader processes: one process gets {ROWS // 2}",
        ),
        (["--batch-size", "97", "--workers", "2", "--dataset-resampled"], None),
        (["--workers", "3"], "at least 3 shards, but"),
        (["--batch-size", "97", "--workers", "2"], "Use a smaller --batch-size, or fewer --workers, or --dataset-resampled."),
        (["--batch-size", "200"], "Use a smaller --batch-size, or --dataset-resampled."),
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
    assert "Add --train-num-samples" in refusal("train", *BASELINE, "--", *stream)
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
    assert "must hold the number of samples" in refusal("train", *BASELINE, "--", *stream)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (["--methods", "weighted_infonce:beta=-1"], [], "beta"),
        (["--test-data", "absent.csv"], [], "absent.csv does not exist"),
        (["--image-encoder", "pixls"], [], "Did you mean 'pixels'"),
        (["--clusterer", "kmeans:n_iter=0"], [], "n_iter of kmeans must be at least 1"),
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
    assert "n_clusters=1000 is more than the number of samples" in shown
    assert list(tmp_path.iterdir()) == []


def test_more_pairs_than_there_are(train_csv: Path, tmp_path: Path) -> None:
    prepare(open_pairs(str(train_csv)), tmp_path / "clusters", progress=False)
    shown = CliRunner().invoke(
        main, ["generate", str(tmp_path / "clusters"), "-o", str(tmp_path / "pairs.parquet"), "--per-image", "100000"]
    )
    assert shown.exit_code == 0
    assert 0 < int(shown.output.split(": ")[1].split()[0]) < ROWS * (ROWS - 1)
    assert read_clusters(tmp_path / "clusters").clusters.n_samples == ROWS


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
    assert f"The checkpoint {file} cannot be read" in shown
    assert ("Remove it: --resume latest then uses the one before." in shown) == latest
    file.with_name("epoch_1.pt").unlink()
    shown = refusal("train", *BASELINE, "--", *arguments, *resumed)
    assert ("Remove it: --resume latest then trains from the start." in shown) == latest


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
    assert "cannot be written: " in shown.stderr
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
    assert "The training diverged: after epoch 2, " in shown.stderr
    assert "Use a lower --lr" in shown.stderr
    assert [file.name for file in checkpoint(arguments, 1).parent.iterdir()] == ["epoch_1.pt"]


def test_file_that_open_clip_cannot_write_is_named(arguments: list[str]) -> None:
    file = checkpoint(arguments, 1).parents[1] / "params.txt"
    file.mkdir(parents=True)
    shown = CliRunner().invoke(main, ["train", *BASELINE, "--", *arguments, "--name", "run"])
    assert shown.exit_code == 2
    assert (
        f"Error: open_clip could not read or write a file {file}: Is a directory. Correct this. Then train again."
        in shown.stderr
    )


def test_a_run_is_to_be_continued_only_if_it_has_a_checkpoint(arguments: list[str]) -> None:
    folder = checkpoint(arguments, 1).parent
    folder.mkdir(parents=True)
    (folder.parent / "out.log").touch()
    shown = refusal("train", *BASELINE, "--", *arguments, "--name", "run")
    assert f"already has a run run. Remove {folder.parent}, which has no checkpoint, or use another --name." in shown
    (folder / "epoch_1.pt").touch()
    shown = refusal("train", *BASELINE, "--", *arguments, "--name", "run")
    assert "already has a run run. Continue it with --resume latest, or use another --name." in shown


@pytest.mark.parametrize(
    ("epochs", "names", "words"),
    [
        (1, {}, "Free disk space. Then train again."),
        (2, {}, "Free disk space. Then continue with --name run --resume latest."),
        (2, {"resume": "the same command"}, "Free disk space. Then continue with the same command."),  # as in a comparison
    ],
)
def test_a_full_disk_is_to_be_freed(
    arguments: list[str], epochs: int, names: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the last epoch; the epochs before have a checkpoint."""

    def fill(self: Negatives, *given: Any, **named: Any) -> None:
        if next(calls) == epochs:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events")
        train_epoch(self, *given, **named)

    calls, train_epoch = iter(range(1, 9)), Negatives.train_epoch
    monkeypatch.setattr(Negatives, "train_epoch", fill)
    line = [*arguments, "--epochs", str(epochs), "--name", "run"]
    with pytest.raises(ArtifactError, match=re.escape(words)), named(names):
        train(line, TrainOptions("in_batch", "uniform"))
