"""A whole comparison on a small part of the real catalogue."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from unittest import mock

import pytest

from clip_negatives import Columns, Recipe, catalogue
from clip_negatives.compare import Comparison, compare, reuse
from clip_negatives.compare import run as run_module
from clip_negatives.compare.arguments import open_described, with_defaults
from clip_negatives.compare.output import WIDTH, plot, results_table, sentences, settings_table
from clip_negatives.compare.queries import read_queries
from clip_negatives.compare.settings import Setting, effective
from clip_negatives.compare.study import run_folder
from clip_negatives.errors import ArtifactError, ClipNegativesError, DataError, InputError
from clip_negatives.host.method import Method
from clip_negatives.report import write_comparison
from tests.pairs import export, write_csv

EPOCHS = 2
BATCH = 64
BY_ITEM = Recipe(columns=Columns(group="item"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return csv files with every twentieth training listing and the test listings of the same items."""
    folder = tmp_path_factory.mktemp("data")
    items = {split: catalogue.load(split).column("item") for split in ("train", "test")}
    chosen = set(items["train"][::20])
    rows = {
        "train": range(0, len(items["train"]), 20),
        "test": [row for row, item in enumerate(items["test"]) if item in chosen],
    }
    train, test = (export(folder / name, name, rows[name], format="csv") / f"{name}.csv" for name in rows)
    return str(train), str(test)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


def start(output: Path, data: tuple[str, str], **more: object) -> Comparison:
    arguments = ["--train-data", data[0], "--batch-size", str(BATCH), "--epochs", str(EPOCHS), "--device", "cpu"]
    given: dict[str, object] = {"methods": "paper", "seeds": 2, "test_data": data[1], "recipe": BY_ITEM, **more}
    return compare(output, arguments=arguments, **given)


@pytest.fixture(scope="module")
def comparison(output: Path, data: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path_factory.mktemp("cache")))
        return start(output, data)


def test_every_field_is_measured(comparison: Comparison) -> None:
    assert [(one["method"]["name"], one["seed"]) for one in comparison.runs] == [
        (name, seed) for seed in (0, 1) for name in ("in_batch", "in_batch@0.1", "paper", "random_reduction")
    ]
    steps = EPOCHS * (comparison.setting["n_train"] // BATCH)
    for one in comparison.runs:
        assert one["steps"] == steps == len(one["losses"])
        assert 0 < one["seconds_per_step"] < 60
        assert 100 < one["peak_memory_mib"] < 20_000
        assert 0 <= one["text_to_image_rank_1"] <= one["text_to_image_rank_5"] <= one["text_to_image_rank_10"] <= 1
        assert one["chance_rank_1"] == pytest.approx(1 / one["queries"])
    assert set(comparison.summaries) == {"in_batch", "in_batch@0.1", "paper", "random_reduction"}
    assert set(comparison.differences) == set(comparison.gains) == {"in_batch@0.1", "paper", "random_reduction"}
    assert set(comparison.gains_over_fixed) == {"paper", "random_reduction"}
    assert comparison.verdict
    assert next(iter(comparison.to_dict())) == "verdict"


def test_gains_are_those_of_the_stored_ranks(comparison: Comparison, output: Path) -> None:
    def mrr(name: str) -> float:
        answers = [read_queries(run_folder(output, name, seed)) for seed in (0, 1)]
        return sum(float((1 / answer.rank).mean()) for answer in answers if answer is not None) / 2

    gain = comparison.gains["paper"]
    assert gain.estimate == pytest.approx(mrr("paper") / mrr("in_batch") - 1, rel=1e-5)
    assert gain.low is not None
    assert gain.high is not None
    assert gain.low < gain.estimate < gain.high
    assert comparison.summaries["paper"]["text_to_image_mrr"].mean == pytest.approx(mrr("paper"), rel=1e-5)


def test_the_ranks_of_all_queries_are_kept(comparison: Comparison, output: Path, data: tuple[str, str]) -> None:
    assert comparison.setting["test"]["location"] == data[1]
    for one in comparison.runs:
        found = read_queries(run_folder(output, one["method"]["name"], one["seed"]))
        assert found is not None
        assert len(found.rank) == len(found.image_rank) == len(found.top) == len(found.item) == one["queries"]
        for k in (1, 5, 10):
            assert float((found.rank <= k).float().mean()) == pytest.approx(one[f"text_to_image_rank_{k}"])
            assert float((found.image_rank <= k).float().mean()) == pytest.approx(one[f"image_to_text_rank_{k}"])


def test_a_report_of_real_runs(comparison: Comparison, output: Path) -> None:
    page = write_comparison(comparison, output).read_text(encoding="utf-8")
    assert "Changed answers" in page
    assert "could not be read" not in page


def test_methods_of_a_seed_start_from_the_same_weights(comparison: Comparison) -> None:
    """The control with nothing dropped differs from the baseline in nothing; and seeds differ."""
    first = {(one["method"]["name"], one["seed"]): one["losses"][0] for one in comparison.runs}
    assert first["in_batch", 0] != first["in_batch", 1]


def test_false_negatives_fall(comparison: Comparison) -> None:
    figures = comparison.summaries
    left = {name: values["false_negatives_kept_per_anchor"].mean for name, values in figures.items()}
    assert left["paper"] < 0.5 * left["in_batch"]
    weights = {name: values["false_weight"].mean for name, values in figures.items()}
    assert weights["in_batch"] == 1
    assert weights["paper"] < 0.5
    shares = {name: values["removed_share"].mean for name, values in figures.items()}
    assert shares["in_batch"] == 0
    assert shares["random_reduction"] == pytest.approx(shares["paper"], abs=0.05)


def test_finished_runs_are_kept(
    comparison: Comparison, output: Path, data: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []

    def count(job: run_module.Job) -> dict[str, object]:
        ran.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(reuse, "run", count)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(Path(comparison.runs[0]["clusters"]).parent))
    again = start(output, data)
    assert not ran
    assert again.summaries == comparison.summaries
    assert again.gains == comparison.gains
    assert (comparison.setting["runs_reused"], again.setting["runs_reused"]) == (0, 8)
    with pytest.raises(KeyboardInterrupt):
        start(output, data, seeds=3)
    assert len(ran) == 1
    assert json.loads((output / "results.json").read_text())["setting"]["seeds"] == 2


def test_tables_and_plot(comparison: Comparison, tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(record=True, width=WIDTH, file=(tmp_path / "shown").open("w"))
    console.print(settings_table([Setting(**setting) for setting in comparison.setting["settings"]]))
    console.print(results_table(comparison))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert max(map(len, sentences(comparison))) <= WIDTH
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["in_batch"][1:] == ["learned", *rows["in_batch"][2:4], "baseline"]
    assert rows["in_batch@0.1"][1] == "0.1"
    assert rows["random_reduction"][-1] == "control"
    assert rows["paper"][4] == f"{100 * comparison.gains['paper'].estimate:+.1f}"
    plot(comparison, tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_tuning_uses_validation_pairs_of_the_training_data_alone(
    comparison: Comparison, output: Path, data: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(Path(comparison.runs[0]["clusters"]).parent))
    states: list[tuple[str, str]] = []

    def on_run(job: run_module.Job, number: int, total: int, state: str) -> None:
        states.append((job.name, state))

    more = {"methods": "in_batch", "seeds": 1, "on_run": on_run}
    tuned = start(output, data, tune_lr=True, temperatures=(0.1, 0.2), **more)
    rate, temperature = (choice["value"] for choice in tuned.setting["tuning"])
    assert [state for name, state in states if name.startswith("tuning")] == ["new"] * 5
    assert list(tuned.summaries) == ["in_batch", f"in_batch@{temperature:g}", "random_reduction"]
    assert tuned.setting["arguments"][-2:] == ["--lr", f"{rate:g}"]
    sources = {setting["option"]: setting for setting in tuned.setting["settings"]}
    assert (sources["--lr"]["value"], sources["--lr"]["source"]) == (f"{rate:g}", "tuned on validation pairs")
    rows = {name: (output / "tuning" / f"{name}.csv").read_text().splitlines()[1:] for name in ("train", "validation")}
    whole = {tuple(row.split("\t")[:2]) for row in Path(data[0]).read_text().splitlines()[1:]}
    parts = [{tuple(row.split("\t")[:2]) for row in part} for part in rows.values()]
    assert parts[0] | parts[1] == whole
    items = [{row.split("\t")[2] for row in part} for part in rows.values()]
    assert not items[0] & items[1]
    assert 0 < len(rows["validation"]) <= 0.1 * len(whole)
    states.clear()
    start(output, data, tune_lr=True, temperatures=(0.1, 0.2), **more)
    assert {state for _, state in states} == {"reused"}


def test_settings_and_their_sources() -> None:
    def sources(*arguments: str, quick: bool = False) -> dict[str, tuple[str, str]]:
        line = with_defaults(arguments, quick=quick)
        return {item.option: (item.value, item.source) for item in effective(line, arguments, quick=quick)}

    tiny = sources("--lr", "0.004")
    assert tiny["--lr"] == ("0.004", "yours")
    assert tiny["--warmup"] == ("10", "ours for clip-negatives-tiny")
    assert tiny["--epochs"] == ("20", "ours for clip-negatives-tiny")
    assert tiny["--model"] == ("clip-negatives-tiny", "our default")
    large = sources("--model", "ViT-B-32", "--pretrained", "openai", "--epochs", "5")
    assert large["--lr"] == ("0.0005", "open_clip's default")
    assert large["--warmup"] == ("10000", "open_clip's default")
    assert large["--precision"] == ("amp", "open_clip's default")
    assert large["--workers"] == ("4", "open_clip's default")
    assert large["--epochs"] == ("5", "yours")
    assert large["--pretrained"] == ("openai", "yours")
    assert sources(quick=True)["--epochs"] == ("1", "--quick")
    assert sources("--model", "ViT-B-32", quick=True)["--epochs"] == ("1", "--quick")


def test_a_failing_run_names_its_log(output: Path, data: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ClipNegativesError, match=r"in_batch with seed 0 failed.*output\.log"):
        compare(
            tmp_path / "out",
            test_data=data[1],
            recipe=BY_ITEM,
            arguments=["--train-data", data[0], "--batch-size", str(BATCH), "--epochs", "1", "--lr", "1e30", "--warmup", "0"],
        )


@pytest.mark.parametrize(
    ("more", "arguments", "error", "words"),
    [
        ({"seeds": 0}, [], InputError, "at least 1 seed"),
        ({"temperatures": [5.0]}, [], InputError, r"0\.01 \.\. 1"),
        ({"tune_lr": True}, ["--lr", "1"], InputError, "Leave one of them out"),
        ({}, ["--seed", "3"], InputError, "Remove --seed"),
        ({}, ["--resum", "latest"], InputError, "Remove --resume"),
        ({}, ["--val-d=x.csv"], InputError, "Remove --val-data"),
        ({}, ["--train-data", "x.csv"], DataError, "Add test_data="),
        ({"test_data": "x.csv"}, [], DataError, "--train-data"),
    ],
)
def test_bad_input(
    more: dict[str, object], arguments: list[str], error: type[ClipNegativesError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        compare(tmp_path / "out", arguments=arguments, **more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("during", ["training", "evaluation"])
def test_test_pairs_that_change_during_a_run(during: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = write_csv(tmp_path / "test")
    described = {"location": str(test), "dataset_type": "csv"}
    fingerprint = open_described(described).fingerprint()
    job = run_module.Job("in_batch", Method(), 0, (), tmp_path, described, fingerprint, tmp_path / "run")

    def change(at: str) -> None:
        if at == during:
            test.write_text("".join(test.read_text().splitlines(keepends=True)[:-1]))

    def train(*_: object) -> None:
        (job.new / "run" / "checkpoints").mkdir(parents=True)
        (job.new / "run" / "checkpoints" / "epoch_1.pt").touch()
        change("training")

    monkeypatch.setattr("clip_negatives.integrations.open_clip.train", train)
    monkeypatch.setattr("clip_negatives.compare.evaluate.ranks", lambda *_: (change("evaluation"), None))
    with pytest.raises(DataError, match="changed while the comparison ran"):
        run_module.measure(job)


def test_last_checkpoint_is_that_of_the_last_epoch(tmp_path: Path) -> None:
    """Their times of change are those of a clock, which may have been set back."""
    for epoch, when in ((2, 300), (10, 100), (9, 200)):
        (tmp_path / f"epoch_{epoch}.pt").touch()
        os.utime(tmp_path / f"epoch_{epoch}.pt", (when, when))
    assert max(tmp_path.iterdir(), key=run_module.epoch_of).name == "epoch_10.pt"


def _sleep(job: run_module.Job) -> None:
    time.sleep(60)


def _be_a_comparison(folder: Path) -> None:
    """Start the process of a run, as `run` does, and be killed."""
    with mock.patch.object(run_module, "measure", _sleep):
        job = run_module.Job(*(None,) * 7, folder=folder)  # type: ignore[arg-type]
        job.new.mkdir(parents=True)
        process = multiprocessing.get_context("fork").Process(target=run_module._in_process, args=(job,))
        process.start()
    (folder / "pid").write_text(str(process.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_ends_with_its_comparison(tmp_path: Path) -> None:
    """One that went on would write into the folder of the next one."""
    process = multiprocessing.get_context("fork").Process(target=_be_a_comparison, args=(tmp_path,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    status = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    end = time.monotonic() + 20
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_second_comparison_in_one_folder_is_told_who_uses_it(data: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_text("77\nanother-machine\n")
    with pytest.raises(ArtifactError, match="out is in use by process 77 on another-machine since"):
        start(tmp_path / "out", data)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(data: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("precious")
    with pytest.raises(ArtifactError, match="is in the way: it was not written by clip-negatives"):
        start(tmp_path, data)
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("results.json", "precious")]


def _fail(job: run_module.Job) -> None:
    raise RuntimeError("a\n\x1b[2Jb")


def test_a_traceback_in_the_log_of_a_run_is_escaped(tmp_path: Path) -> None:
    with mock.patch.object(run_module, "measure", _fail):
        job = run_module.Job(*(None,) * 7, folder=tmp_path)  # type: ignore[arg-type]
        job.new.mkdir(parents=True)
        process = multiprocessing.get_context("fork").Process(target=run_module._in_process, args=(job,))
        process.start()
        process.join(60)
    log = (job.new / "output.log").read_text()
    assert "RuntimeError: a\n\\x1b[2Jb\n" in log
    assert "\x1b" not in log
