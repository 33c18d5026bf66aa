"""The commands encode, centroids and assign, whose output `labels` reads."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_negatives.cli import main
from clip_negatives.storage.labels_folder import read_labels
from tests.pairs import write_tars

ENCODERS = ("--image-encoder", "pixels:size=4,dim=0", "--text-encoder", "hashing:dim=32")


def run(*arguments: str, code: int = 0) -> Result:
    shown = CliRunner().invoke(main, list(arguments))
    assert shown.exit_code == code, shown.output
    assert "Traceback" not in shown.output
    return shown


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name in ("ID", "COUNT", "MIN", "STEP"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    return Path(write_tars(tmp_path, 32, shards=4)).name


def test_labels_of_independent_tasks(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("encode", data, "parts", *ENCODERS, "--task", "1/2")
    assert first.stdout == "parts: 4 parts encoded by this task, 4 of 4 complete\n"
    assert "Next: clip-negatives centroids parts CENTROIDS --clusterer kmeans:n_clusters=NUMBER" in first.stderr
    second = run("encode", data, "parts", *ENCODERS, "--task", "2/2")
    assert second.stdout == "parts: 0 parts encoded by this task, 4 of 4 complete\n"
    made = run("centroids", "parts", "centroids", "--clusterer", "kmeans:n_clusters=4", "--points-per-cluster", "6")
    assert made.stdout == "centroids: 4 image clusters, 4 text clusters, from 24 of 32 pairs\n"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    assigned = run("assign", "parts", "centroids/", "assignments")
    assert "Task 3/3, from SLURM_ARRAY_TASK_ID\n" in assigned.stderr
    run("labels", "labels", "--from", "assignments", "--centroids", "centroids/image.npy,centroids/text.npy", "--data", data)
    assert read_labels("labels").image.n_samples == 32


def test_missing_tar_ends_with_code_1_and_the_option_that_accepts_it(data: str) -> None:
    Path("pairs-000002.tar").unlink()
    shown = run("encode", data, "parts", *ENCODERS, code=1)
    assert shown.stdout == "parts: 4 parts encoded by this task, 4 of 4 complete\n"
    assert "pairs-000002.tar does not exist. Check its path. To leave out this tar, use --max-missing-shards 1." in shown.stderr
    accepted = run("encode", data, "parts", *ENCODERS, "--max-missing-shards", "1")
    assert "pairs-000002.tar does not exist. Check its path. It is left out.\n" in accepted.stderr


def test_claim_of_a_killed_task_is_named_as_the_reason_that_parts_are_left(data: str) -> None:
    run("encode", data, "parts", *ENCODERS)
    (record,) = Path("parts").glob("000002-*/part.json")
    record.unlink()
    claim = Path("parts/claims", f"{record.parent.name}.json")
    claim.write_text(json.dumps({"task": "2/2", "host": "other", "time": time.time()}))
    shown = run("encode", data, "parts", *ENCODERS)
    assert shown.stdout == "parts: 0 parts encoded by this task, 3 of 4 complete\n"
    assert (
        "Other tasks have claimed 1 of these parts. If one was killed or failed, run it again, or wait 15 min" in shown.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "DATA", "parts", "--task", "5/4"], "--task must be NUMBER/COUNT with NUMBER from 1 to COUNT"),
        (["encode", "DATA", "parts"], "learns from all data together"),
        (["encode", "DATA", "parts", *ENCODERS[:2]], "Name a trained model or hashing with --text-encoder."),
        (["encode", "DATA", "unknown://parts", *ENCODERS], "unknown://parts cannot be read or written: Protocol not known"),
        (["centroids", "absent", "centroids", "--clusterer", "kmeans:n_clusters=4"], "absent has no plan.json"),
        (["centroids", "absent", "centroids"], "--clusterer kmeans does not set the number of clusters"),
        (["centroids", "absent", ".", "--clusterer", "kmeans:n_clusters=4"], "it has files, but no centroids.json"),
        (["assign", "absent", "centroids", "assignments"], "absent has no plan.json"),
    ],
)
def test_errors_are_one_line_and_write_nothing(data: str, arguments: list[str], words: str) -> None:
    before = sorted(Path().rglob("*"))
    shown = run(*(data if word == "DATA" else word for word in arguments), code=2)
    assert words in shown.stderr
    assert len([line for line in shown.stderr.splitlines() if not line.startswith("Reading ")]) == 1
    assert sorted(Path().rglob("*")) == before
