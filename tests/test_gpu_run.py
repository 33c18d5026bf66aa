"""The program for GPU machines: rows, resuming, failures and exit codes, and a rehearsal on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from gpu import cases as gpu_cases
from gpu.cases import Case, run_cases
from gpu.exit_codes import CASES_LEFT, DEVICE_LOST, FAILED, FINISHED
from gpu.keep import keep
from gpu.processes import run_logged, run_measurements
from gpu.rows import Rows, read
from gpu.wheels import unpack

ROOT = Path(__file__).resolve().parents[1]


def case(name, measure=lambda: {"seconds": 1.0}, seconds=1.0):
    return Case("loss", "loss, of two", name, measure, seconds)


def fails():
    raise ValueError("no kernel\nmore")


def names(file):
    return [row["key"].rpartition(": ")[2] for row in read(file)]


def plenty():
    return 100.0


def test_each_case_has_one_row_and_a_second_run_repeats_none(tmp_path):
    file = tmp_path / "rows.jsonl"
    assert run_cases([case("a"), case("long", seconds=200.0)], Rows(file), plenty) == CASES_LEFT
    assert run_cases([case("a"), case("long"), case("b")], Rows(file), plenty) == FINISHED
    assert names(file) == ["a", "long", "b"]
    assert all(row["seconds"] == 1.0 and row["kind"] == "loss" for row in read(file))
    copied = tmp_path / "new" / "rows.jsonl"
    copied.parent.mkdir()
    assert run_cases([case("a"), case("c")], Rows(copied, [file]), plenty) == FINISHED
    assert names(copied) == ["c"]


def test_failed_case_is_an_error_row_and_is_tried_again_last(tmp_path):
    file = tmp_path / "rows.jsonl"
    assert run_cases([case("bad", fails), case("good")], Rows(file), plenty) == FAILED
    bad, good = read(file)
    assert bad["error"] == "ValueError: no kernel"
    assert "fails" in bad["trace"]
    assert "error" not in good
    assert run_cases([case("bad", fails)], Rows(file, since=bad["time"]), plenty) == FAILED  # not again in the same run
    assert len(read(file)) == 2
    assert run_cases([case("bad"), case("new")], Rows(file, since=time.time()), plenty) == FINISHED
    assert names(file)[2:] == ["new", "bad"]


def test_too_little_memory_is_a_result(tmp_path):
    def needs_more():
        raise torch.OutOfMemoryError("too much")

    file = tmp_path / "rows.jsonl"
    assert run_cases([case("large", needs_more)], Rows(file), plenty) == FINISHED
    assert read(file)[0]["cannot"] == "out of memory"


def test_line_that_was_cut_off_is_measured_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    run_cases([case("a"), case("b")], Rows(file), plenty)
    file.write_text(file.read_text()[:-20])
    assert run_cases([case("a"), case("b")], Rows(file), plenty) == FINISHED
    assert names(file) == ["a", "b"]


def test_process_that_loses_the_device_ends_after_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_cases, "_release_memory", lambda: False)
    file = tmp_path / "rows.jsonl"
    assert run_cases([case("bad", fails), case("good")], Rows(file), plenty) == DEVICE_LOST
    assert names(file) == ["bad"]


CRASH = """
import os, signal, sys, time
from pathlib import Path
from gpu.rows import Rows

rows = Rows(Path(sys.argv[1]))
if not rows.has_failed("bad"):
    with rows.running("bad"):
        {end}
rows.add("good")
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("end", "seconds", "error", "after"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 100, "the process ended with exit code -11", ["bad", "good"]),
        ("time.sleep(60)", -25, "it did not end in time", ["bad"]),
    ],
    ids=["crash", "hang"],
)
def test_case_that_ends_or_stops_the_process_is_an_error_row(tmp_path, end, seconds, error, after):
    rows, log = Rows(tmp_path / "rows.jsonl"), tmp_path / "log.txt"
    command = [sys.executable, "-c", CRASH.format(end=end), str(rows.file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *sys.path])}
    assert run_measurements(command, environment, log, seconds, tmp_path, rows) == FAILED
    assert names(rows.file) == after
    assert read(rows.file)[0]["error"] == error


def test_output_is_kept_and_a_process_ends_at_its_limit(tmp_path):
    log = tmp_path / "log.txt"
    script = "import time; print('started', flush=True); time.sleep(60)"
    assert run_logged([sys.executable, "-c", script], dict(os.environ), log, 3, tmp_path) is None
    assert log.read_text() == "started\n"


def test_wheels_are_unpacked_once_and_again_when_they_change(tmp_path):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    unpack(wheels, site)  # none: the packages of this Python are used
    assert not site.exists()
    wheels.mkdir()
    for content in ("1", "22"):
        with zipfile.ZipFile(wheels / "one-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("one.py", content)
        unpack(wheels, site)
        assert (site / "one.py").read_text() == content
        (site / "one.py").write_text("kept")
        unpack(wheels, site)
        assert (site / "one.py").read_text() == "kept"


def test_tile_options_reach_the_kernels():
    from gpu.tile_cases import tuned
    from losses import loss_of, make_step

    from clip_negatives.losses.kernels import fused, problem

    before = problem.tile_of, fused.SLOPES_BYTES
    with tuned({"BM": 16}, 3) as used:
        assert fused.SLOPES_BYTES == 3 * 2**20
        if not torch.cuda.is_available():
            make_step(loss_of("triton none", 16, 16), 16, 16, passes="forward")()
            assert used["BM"] == 16
    assert (problem.tile_of, fused.SLOPES_BYTES) == before


def test_largest_shape_leaves_out_the_loss_of_open_clip():
    from gpu.measure import cases

    keys = [one.key for one in cases({"loss", "compiled"}, rehearse=False) if "131072 pairs" in one.key]
    assert [key for key in keys if "open_clip" in key] == []
    assert [key for key in keys if "triton weighted" in key] != []


def command(name, out):
    program = [sys.executable, ROOT / "benchmarks" / "gpu", name, "--rehearse", "--out", out]
    return [*program, "--wheels", out / "none", "--site", out / "none"]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """Return the file of a rehearsal, and its first rows, which an earlier process wrote."""
    from gpu.measure import cases

    file = tmp_path_factory.mktemp("gpu") / "rows.jsonl"
    first = list(cases({"loss"}, rehearse=True))[:2]
    assert run_cases(first, Rows(file), plenty) == FINISHED
    before = read(file)
    done = subprocess.run(command("bench", file.parent), check=False, capture_output=True, text=True)
    assert done.returncode == FINISHED, done.stdout[-3000:]
    return file, before


def test_rehearsal_measures_every_case_that_has_no_row(rehearsal):
    from gpu.measure import cases

    file, before = rehearsal
    rows = read(file)
    assert rows[:2] == before
    assert rows[2]["key"] == "machine"
    assert rows[2]["rehearsal"] is True
    keys = [row["key"] for row in rows if row["key"] != "machine"]
    assert keys == [one.key for one in cases({"loss", "profile", "tiles", "step"}, rehearse=True)]
    assert [row["key"] for row in rows if "error" in row] == []
    assert [row["key"] for row in rows if "is not installed" not in row.get("cannot", "is not installed")] == []


def test_terminated_program_ends_its_process(tmp_path):
    program = subprocess.Popen(command("kmeans", tmp_path), stdout=subprocess.DEVNULL)
    while program.poll() is None and not (tmp_path / "log.txt").exists():
        time.sleep(0.05)
    program.terminate()
    assert program.wait(60) == 128 + signal.SIGTERM


def test_page_shows_kept_rows_with_the_name_of_the_machine(rehearsal, tmp_path, monkeypatch):
    import report

    rows_file, _ = rehearsal
    machine = next(row for row in read(rows_file) if row["key"] == "machine")
    results = tmp_path / "results"
    files = keep([rows_file], results)
    assert {file.name for file in files} == {"loss.json", "profile.json", "tiles.json", "training_step.json"}
    assert {file.parent.name for file in files} == {machine["folder"]}
    for file in files:
        content = json.loads(file.read_text())
        content["machine_info"]["gpus"] = ["A GPU"]
        for entry in content["benchmarks"]:
            entry["extra_info"]["peak_mib_over_open_clip"] = 1.0  # measured on a GPU only
        file.write_text(json.dumps(content))
    monkeypatch.setattr(report, "RESULTS", results)
    page = report.page()
    for part in (
        "## A GPU\n",
        "**On a GPU.**",
        "### Tile options, triton weighted",
        "### Kernels of a step",
        "| BM 128, BN 256, maxnreg None |",
    ):
        assert part in page
    assert "Nothing here was run on a GPU" not in page
    report.plot(results / machine["folder"], tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").exists()


def test_rows_of_two_machines_are_not_mixed(tmp_path):
    for folder in ("one", "two"):
        Rows(tmp_path / "rows.jsonl").add("machine", folder=folder, rehearsal=False, information={})
    with pytest.raises(SystemExit, match="one, two"):
        keep([tmp_path / "rows.jsonl"], tmp_path)


def test_tests_have_rows_and_those_that_passed_are_not_repeated(tmp_path):
    test = tmp_path / "test_one.py"
    test.write_text("def test_good(): pass\ndef test_bad(): assert False\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:clip_negatives",
        "-p",
        "gpu.pytest_rows",
        "--rows",
        tmp_path / "rows.jsonl",
        test,
    ]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT / "benchmarks")}
    for expected in (1, 0, 5):
        done = subprocess.run(command, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.returncode == expected, done.stdout
        test.write_text("def test_good(): assert False\ndef test_bad(): pass\n")
    rows = read(tmp_path / "rows.jsonl")
    assert [(row["key"].rpartition("::")[2], row["outcome"]) for row in rows] == [
        ("test_good", "passed"),
        ("test_bad", "failed"),
        ("test_bad", "passed"),
    ]
    assert "assert False" in rows[1]["trace"]
