"""The record of a run: written at the start, compared over all processes and before a resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist

from clip_negatives import Recipe
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ArtifactError, DataError, InputError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.integrations.open_clip.adapter import installed
from clip_negatives.integrations.open_clip.command_line import parsed
from clip_negatives.integrations.open_clip.run_record import COST, NOT_RECORDED, SCHEDULE, check_dataset, record_of
from clip_negatives.integrations.open_clip.train_set import rank, world_size
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.storage.digests import package_digest
from clip_negatives.storage.provenance import differences, read_record
from tests import ranks
from tests.pairs import write_tars

from .conftest import ROWS

PLAIN = {"sampler": "in_batch", "weighting": "uniform"}
BASELINE = ["--sampler", "in_batch", "--weighting", "uniform"]


def reordered(train_csv: Path, file: Path) -> Path:
    """Write the rows of a csv file with the first two exchanged."""
    lines = train_csv.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    return file


def with_value(arguments: list[str], option: str, value: object) -> list[str]:
    """Return the arguments with another value of an option that they have."""
    place = arguments.index(option) + 1
    return [*arguments[:place], str(value), *arguments[place + 1 :]]


def test_record_has_the_length_of_a_stream_and_our_own_source(tmp_path: Path) -> None:
    args = parsed(["--train-data", write_tars(tmp_path, 8), "--dataset-type", "webdataset"])
    records = []
    for size in (4, 5):
        (tmp_path / "sizes.json").write_text(json.dumps({f"pairs-{shard:06d}.tar": size for shard in range(2)}))
        records.append(record_of(args, TrainOptions(), {}))
    (listed,) = differences(*records)
    assert (listed.path, listed.first, listed.second) == (("open_clip", "train_num_samples"), 8, 10)
    assert records[0]["plugins"]["package clip-negatives"]["source"] == package_digest("clip_negatives")


def test_record_is_in_the_folder_of_the_run(arguments: list[str], train_csv: Path, tmp_path: Path) -> None:
    prepare(open_pairs(str(train_csv)), tmp_path / "clusters", progress=False)
    train([*arguments, "--name", "run"], TrainOptions(clusters=tmp_path / "clusters", weighting="weighted_infonce:beta=2"))
    record = read_record(tmp_path / "logs" / "run" / "clip_negatives" / "provenance.json")
    assert record is not None
    assert record["data"] == {"kind": "table", **open_pairs(str(train_csv)).identity()}
    assert (
        record["clusters"]["image_encoder"]
        == json.loads((tmp_path / "clusters" / "manifest.json").read_text())["image_encoder"]
    )
    assert "beta=2.0" in record["method"]["weighting"]
    assert record["open_clip"]["batch_size"] == 32
    assert not {"logs", "name"} & record["open_clip"].keys()
    assert record["processes"] == {"number": 1}
    assert record["plugins"]["loss weighting weighted_infonce"]["distribution"] == "clip-negatives"
    assert record["versions"].keys() == {"clip-negatives", "open_clip_torch", "torch"}


OPEN_CLIP_4 = {
    *("log_metric_every_n_steps", "train_loss_ema_samples", "val_retrieval_chunk_size", "val_retrieval_precision"),
    *("torchcompile_strategy", "torchcompile_backend", "torchcompile_mode"),
}
"""Arguments that open_clip 3 does not have."""


def test_every_named_argument_exists() -> None:
    unknown = (NOT_RECORDED | COST | SCHEDULE) - vars(parsed(["--train-data", "x.csv"])).keys()
    assert unknown == (OPEN_CLIP_4 if type(installed()).__module__.endswith("version3") else {"horovod"})


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {"SLURM_PROCID": "1", "SLURM_NTASKS": "1"}])
def test_a_rank_without_several_processes_is_rank_0(
    arguments: list[str],
    train_csv: Path,
    tmp_path: Path,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (rank(), world_size()) == (0, 1)
    prepare(open_pairs(str(reordered(train_csv, tmp_path / "other.csv"))), tmp_path / "clusters", progress=False)
    with pytest.raises(ArtifactError, match="row 0 differs"):
        train([*arguments, "--name", "run"], TrainOptions(clusters=tmp_path / "clusters", **PLAIN))
    (tmp_path / "logs" / "run").mkdir(parents=True)
    (tmp_path / "logs" / "run" / "out.log").touch()
    with pytest.raises(InputError, match="already has a run run"):
        train([*arguments, "--name", "run"], TrainOptions(**PLAIN))


def test_ranks_by_open_clips_own_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}.items():
        monkeypatch.setenv(name, value)
    assert (rank(), world_size()) == (1, 3)
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun's variable counts before Slurm's
    assert (rank(), world_size()) == (0, 1)


def test_clusters_of_other_data_stop_even_if_only_the_record_is_compared(
    arguments: list[str], train_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_negatives.integrations.open_clip.preflight.check_columns", lambda *arguments: None)
    prepare(open_pairs(str(reordered(train_csv, tmp_path / "other.csv"))), tmp_path / "clusters", progress=False)
    with pytest.raises(ArtifactError, match=r"belong to other data \(the texts differ\)"):
        train([*arguments, "--name", "run"], TrainOptions(clusters=tmp_path / "clusters", **PLAIN))


def _lines(*cases: list[list[str]]) -> None:
    """Run the command of this rank for each case."""
    for case, port in zip(cases, os.environ["MASTER_PORTS"].split(), strict=False):  # a port for each argument
        os.environ["MASTER_PORT"] = port
        os.write(1, f"exit code {ranks.command(case[int(os.environ['RANK'])])}\n".encode())
        if dist.is_initialized():
            dist.destroy_process_group()


def test_ranks_that_differ_stop_on_every_rank(arguments: list[str], train_csv: Path, tmp_path: Path) -> None:
    other = reordered(train_csv, tmp_path / "other.csv")
    for name, seed in (("clusters", 0), ("more", 1)):
        prepare(open_pairs(str(train_csv)), tmp_path / name, progress=False, recipe=Recipe(seed=seed))
    common = [*arguments, "--dist-backend", "gloo"]
    train([*with_value(arguments, "--epochs", 2), "--name", "resumed"], TrainOptions(**PLAIN))
    checkpoints = tmp_path / "logs" / "resumed" / "checkpoints"
    for file in checkpoints.iterdir():  # named as those of several processes are
        stored = torch.load(file)
        torch.save({**stored, "state_dict": {f"module.{name}": value for name, value in stored["state_dict"].items()}}, file)

    def line(name: str, *ours: str, theirs: list[str] = common) -> list[str]:
        return ["train", *(ours or BASELINE), "--", *theirs, "--name", name]

    cases = {
        r"Rank 1 differs from rank 0: the images of the data differ; the texts of the data differ\.": [
            line("data"),
            line("data", theirs=with_value(common, "--train-data", other)),
        ],
        "the content of the clusters differs; the seed of the clusters on rank 0 is 0, on rank 1 is 1": [
            line("clusters", "--clusters", str(tmp_path / "clusters")),
            line("clusters", "--clusters", str(tmp_path / "more")),
        ],
        "the weighting on rank 0 is weighted_infonce:beta=1.0, on rank 1 is weighted_infonce:beta=2.0": [
            line("weighting", "--weighting", "weighted_infonce:beta=1"),
            line("weighting", "--weighting", "weighted_infonce:beta=2"),
        ],
        "--lr on rank 0 is 0.001, on rank 1 is 0.01": [line("lr"), line("lr", theirs=with_value(common, "--lr", 0.01))],
        "the first epoch on rank 0 is 1, on rank 1 is 2; the resumed checkpoint differs": [
            line("epoch", *BASELINE, "--resume-anyway", theirs=[*common, "--resume", str(checkpoints / f"epoch_{epoch}.pt")])
            for epoch in (1, 2)
        ],
        "the evaluation data on rank 0 is none, on rank 1 is val_data": [
            line("val"),
            line("val", theirs=[*common, "--val-data", str(train_csv)]),
        ],
    }
    output = ranks.run(2, _lines, *cases.values(), log=tmp_path / "output")
    for text in output:
        errors = [line for line in text.splitlines() if line.startswith("Error: ")]
        assert len(errors) == len(cases), text
        for error, words in zip(errors, cases, strict=True):
            assert re.search(words, error), error
        assert text.count("exit code 2") == len(cases), text


def _on_machines(folders: list[Path], *lines: list[str]) -> None:
    """Run the command of this rank as the only process of a machine: with a folder and a cache of its own."""
    machine = folders[int(os.environ["RANK"])]
    os.chdir(machine)
    os.environ |= {"LOCAL_RANK": "0", "CLIP_NEGATIVES_CACHE": str(machine / "cache")}
    _lines(*([line] * len(folders) for line in lines))


def test_other_files_on_the_second_machine_stop_both(
    arguments: list[str], train_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = [tmp_path / "first", tmp_path / "second"]
    rows = [line.split("\t") for line in train_csv.read_text().splitlines()]
    place = rows[0].index("filepath")
    for machine in machines:
        (machine / "images").mkdir(parents=True)
        for row in rows[1:]:
            shutil.copy(row[place], machine / "images")
        named = [[*row[:place], f"images/{Path(row[place]).name}", *row[place + 1 :]] for row in rows[1:]]
        (machine / "train.csv").write_text("".join("\t".join(row) + "\n" for row in [rows[0], *named]))
    monkeypatch.chdir(machines[0])
    prepare(open_pairs("train.csv"), tmp_path / "clusters", progress=False)
    changed = machines[1] / "images" / Path(rows[1][place]).name
    changed.write_bytes(changed.read_bytes() + b"\0")
    rest = ["--", *with_value(arguments, "--train-data", "train.csv"), "--dist-backend", "gloo"]
    images = ["train", *BASELINE, "--clusters", str(tmp_path / "clusters"), *rest, "--name", "images"]
    cache = ["train", *rest, "--name", "cache"]
    for text in ranks.run(2, _on_machines, machines, images, cache, log=tmp_path / "output"):
        errors = [line for line in text.splitlines() if line.startswith("Error: ")]
        assert len(errors) == text.count("exit code 2") == 2, text
        assert (
            f"Rank 1 on {socket.gethostname()}: The image images/{changed.name} (row 0 of {tmp_path / 'clusters'}) has "
            in errors[0]
        )
        assert "The clusters that rank 0 prepared cannot be read on this machine: " in errors[1]


@pytest.fixture
def trained(arguments: list[str], train_csv: Path, tmp_path: Path) -> list[str]:
    """Return the arguments of a run that was trained for an epoch."""
    prepare(open_pairs(str(train_csv)), tmp_path / "clusters", progress=False)
    prepare(open_pairs(str(train_csv)), tmp_path / "more", Recipe(seed=1), progress=False)
    train([*arguments, "--name", "run"], TrainOptions(clusters=tmp_path / "clusters", refresh_every=1))
    return [*with_value(arguments, "--epochs", 2), "--name", "run"]


def test_resume_with_other_settings_is_an_error(trained: list[str], train_csv: Path, tmp_path: Path) -> None:
    other = reordered(train_csv, tmp_path / "other.csv")
    prepare(open_pairs(str(other)), tmp_path / "of-other", progress=False)
    same = {"clusters": tmp_path / "clusters", "refresh_every": 1}
    checkpoint = tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt"
    before = {file: file.read_bytes() for file in (tmp_path / "logs").rglob("*") if file.is_file()}
    cases = [
        (trained, {"clusters": tmp_path / "more"}, "the content of the clusters differs; the seed of the clusters was 0, is 1"),
        (trained, {"refresh_every": None}, "--refresh-every was 1, is none"),
        (trained, {"refresh_every": 2}, "--refresh-every was 1, is 2"),
        (
            trained,
            {"weighting": "weighted_infonce:beta=2"},
            "the weighting was weighted_infonce:beta=1.0, is weighted_infonce:beta=2.0",
        ),
        (trained, {"sampler": "in_batch"}, "the sampler was cluster_similarity:.*, is in_batch"),
        (trained, {"temperature": 0.1}, "the temperature was none, is 0.1"),
        (with_value(trained, "--batch-size", 16), {}, "--batch-size was 32, is 16"),
        ([*trained, "--seed", "1"], {}, "--seed was 0, is 1"),
        (with_value(trained, "--model", "ViT-B-32"), {}, "--model was clip-negatives-tiny, is ViT-B-32"),
        (with_value(trained, "--train-data", other), {"clusters": tmp_path / "of-other"}, "the texts of the data differ"),
    ]
    for place, (arguments, options, words) in enumerate(cases):
        resume = ["--resume", "latest"]
        if place % 2:  # into a run of another name
            resume = ["--resume", str(checkpoint), "--name", "another"]
        with pytest.raises(InputError, match=f"{checkpoint.name} had other data or settings: .*{words}.*--resume-anyway"):
            train([*arguments, *resume], TrainOptions(**{**same, **options}))
    assert before == {file: file.read_bytes() for file in (tmp_path / "logs").rglob("*") if file.is_file()}


def test_resume_anyway_warns_and_the_schedule_is_free(trained: list[str], tmp_path: Path) -> None:
    same = {"clusters": tmp_path / "clusters", "refresh_every": 1}
    shutil.move(tmp_path / "logs", tmp_path / "moved")
    moved = [*with_value(trained, "--logs", tmp_path / "moved"), "--workers", "1"]
    run, log = tmp_path / "moved" / "run", tmp_path / "moved" / "run" / "out.log"
    train([*with_value(moved, "--lr", "1e-4"), "--resume", "latest"], TrainOptions(**same))
    assert "resumed run had" not in log.read_text()
    longer = [*with_value(moved, "--epochs", 3), "--resume", "latest"]
    train(longer, TrainOptions(**same, temperature=0.1, resume_anyway=True))
    assert "The resumed run had other data, settings or packages: the temperature was none, is 0.1." in log.read_text()
    record = read_record(run / "clip_negatives" / "provenance.json")
    assert record is not None
    assert record["method"]["temperature"] == 0.1
    file = run / "clip_negatives" / "provenance.json"
    file.write_text("{")
    longest = [*with_value(moved, "--epochs", 4), "--resume", "latest"]
    with pytest.raises(ArtifactError, match="is damaged or of another version, so nothing can be compared with it"):
        train(longest, TrainOptions(**same, weighting="uniform"))
    train(longest, TrainOptions(**same, weighting="uniform", resume_anyway=True))
    assert "Nothing was compared with the resumed run: " in log.read_text()
    file.unlink()
    train([*with_value(moved, "--epochs", 5), "--resume", "latest"], TrainOptions(**same, weighting="uniform"))
    assert "Nothing was compared with the resumed run: it has no " in log.read_text()


@pytest.mark.parametrize("place", ["relative", "link"])
def test_the_run_of_a_checkpoint_is_found_by_any_path(
    trained: list[str], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = tmp_path / "logs" / "run" / "checkpoints"
    (tmp_path / "best.pt").symlink_to(checkpoints / "epoch_1.pt")
    monkeypatch.chdir(checkpoints)
    resume = ["--resume", "epoch_1.pt" if place == "relative" else str(tmp_path / "best.pt"), "--name", "another"]
    same = {"clusters": tmp_path / "clusters", "refresh_every": 1}
    with pytest.raises(InputError, match=r"the weighting was weighted_infonce:beta=1\.0, is weighted_infonce:beta=2\.0"):
        train([*trained, *resume], TrainOptions(**same, weighting="weighted_infonce:beta=2"))
    train([*trained, *resume], TrainOptions(**same))
    train([*with_value(with_value(trained, "--epochs", 3), "--name", "another"), "--resume", "latest"], TrainOptions(**same))


def test_a_resumed_run_keeps_its_record_until_its_first_checkpoint(trained: list[str], tmp_path: Path) -> None:
    file = tmp_path / "logs" / "run" / "clip_negatives" / "provenance.json"
    before = file.read_text()

    def stop(samples: object) -> None:
        raise KeyboardInterrupt

    other = {"clusters": tmp_path / "clusters", "refresh_every": 1, "weighting": "uniform", "resume_anyway": True}
    with pytest.raises(KeyboardInterrupt):
        train([*trained, "--resume", "latest"], TrainOptions(**other, on_batch=stop))
    assert file.read_text() == before
    train([*trained, "--resume", "latest"], TrainOptions(**other))
    assert file.read_text() != before


def test_stored_clusters_of_other_rows_stop_even_a_resume_anyway(trained: list[str], train_csv: Path, tmp_path: Path) -> None:
    train([*trained, "--resume", "latest"], TrainOptions(clusters=tmp_path / "clusters", refresh_every=1))
    other = reordered(train_csv, tmp_path / "other.csv")
    prepare(open_pairs(str(other)), tmp_path / "of-other", progress=False)
    arguments = [*with_value(with_value(trained, "--train-data", other), "--epochs", 3), "--resume", "latest"]
    with pytest.raises(ArtifactError, match="clusters-epoch-1 belong to other data"):
        train(arguments, TrainOptions(clusters=tmp_path / "of-other", refresh_every=1, resume_anyway=True))


def test_state_of_other_rows_stops_even_a_resume_anyway(arguments: list[str], train_csv: Path, tmp_path: Path) -> None:
    train([*arguments, "--name", "run"], TrainOptions(weighting="sogclr"))
    other = with_value(arguments, "--train-data", reordered(train_csv, tmp_path / "other.csv"))
    resumed = [*with_value(other, "--epochs", 2), "--name", "run", "--resume", "latest"]
    with pytest.raises(ArtifactError, match="is of other data or clusters: its values belong to other samples"):
        train(resumed, TrainOptions(weighting="sogclr", resume_anyway=True))


def test_a_csv_file_that_changes_as_the_run_starts_stops(train_csv: Path) -> None:
    data = open_pairs(str(train_csv))
    record = {"data": {"kind": "table", **data.identity()}}
    check_dataset(record, SimpleNamespace(pairs=data))
    for column in ("texts", "images"):
        with pytest.raises(DataError, match="changed while the run started"):
            check_dataset({"data": {**record["data"], column: "other"}}, SimpleNamespace(pairs=data))


def test_other_packages_are_a_warning_at_a_resume(trained: list[str], tmp_path: Path) -> None:
    file = tmp_path / "logs" / "run" / "clip_negatives" / "provenance.json"
    stored = json.loads(file.read_text())
    stored["versions"]["torch"] = "2.0"
    stored["plugins"]["loss weighting weighted_infonce"]["source"] = "0" * 64
    file.write_text(json.dumps(stored))
    train([*trained, "--resume", "latest"], TrainOptions(clusters=tmp_path / "clusters", refresh_every=1))
    told = (tmp_path / "logs" / "run" / "out.log").read_text()
    assert "the source of the loss weighting weighted_infonce differs; the version of torch was 2.0, is " in told


def test_weights_alone_are_no_run_to_compare_with(trained: list[str], tmp_path: Path) -> None:
    checkpoint = torch.load(tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt", weights_only=True)
    torch.save(checkpoint["state_dict"], tmp_path / "weights.pt")
    arguments = with_value(with_value(trained, "--name", "tuned"), "--epochs", 1)
    train([*arguments, "--resume", str(tmp_path / "weights.pt")], TrainOptions(**PLAIN))
    assert "resumed run" not in (tmp_path / "logs" / "tuned" / "out.log").read_text()
    assert len(open_pairs(arguments[1])) == ROWS


def test_a_second_training_of_one_name_is_told_who_runs_it(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / ".run.lock").write_text("77\nanother-machine\n")
    with pytest.raises(ArtifactError, match="logs/run is in use by process 77 on another-machine since"):
        train([*arguments, "--name", "run"], TrainOptions(**PLAIN))
    assert not (tmp_path / "logs" / "run").exists()
