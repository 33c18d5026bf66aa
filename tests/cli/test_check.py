"""The command `check` as a user runs it: data in, an answer, a page and a file of suspect pairs out; then decisions back in."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_negatives import read_clusters
from clip_negatives.cli import main
from tests.pairs import write_csv, write_tars

N = 120


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))
    return write_csv(tmp_path / "my data", N)


def run(*words: str | Path, code: int = 0) -> Result:
    shown = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
    assert shown.exit_code == code, (shown.stdout, shown.stderr)
    return shown


def next_commands(shown: Result) -> list[list[str]]:
    return [shlex.split(line.removeprefix("Next: ")) for line in shown.stderr.splitlines() if line.startswith("Next: ")]


def unwrapped(text: str) -> str:
    """Return a text as one line."""
    return " ".join(text.split())


def decide(file: Path, decision: str) -> dict[str, str]:
    """Write a decision into the first row of a file of suspect pairs, and return the row."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[0]["decision"] = decision
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows[0]


def test_from_data_to_an_answer(data: Path) -> None:
    shown = run("check", data, "--group-column", "item", "--no-choose", "--json", "answer.json")
    lines = shown.stdout.splitlines()
    assert lines[0] == "Are there false negatives?"
    assert lines[1].startswith(f"  Yes. In a batch of {N}, an image meets ")
    assert "Better: --image-encoder efficientnet-lite0" in unwrapped(shown.stdout)
    ((program, command, *words),) = next_commands(shown)
    assert (program, command) == ("clip-negatives", "train")
    assert words[words.index("--method") + 1] == "id_mask:by=group@0.1"
    assert words[words.index("--train-data") + 1] == str(data)
    assert words[words.index("--group-column") + 1] == "item"
    assert read_clusters(words[words.index("--clusters") + 1]).clusters.n_samples == N
    answer = json.loads(Path("answer.json").read_text())
    assert answer["method"] == "id_mask:by=group@0.1"
    assert [shlex.split(line) for line in answer["commands"]] == next_commands(shown)
    assert answer["rates"]["left_out"] == [256, 1024, 4096, 32_768]
    assert "What to do?" in Path("check/index.html").read_text()


def test_decisions_go_back_into_check_and_prepare(data: Path) -> None:
    run("check", data, "--no-choose")
    file = Path("check/suspects.csv")
    row = decide(file, "same")
    shown = run("check", data, "--no-choose", "--decided", file)
    prepare, train = next_commands(shown)
    assert prepare == ["clip-negatives", "prepare", str(data), "clusters-decided", "--decided", str(file)]
    assert train[:4] == ["clip-negatives", "train", "--clusters", "clusters-decided"]
    with Path("check/suspects-2.csv").open(newline="") as stream:
        listed = list(csv.DictReader(stream))
    pairs = [(item["row_a"], item["row_b"], item["decision"]) for item in listed]
    assert pairs.count((row["row_a"], row["row_b"], "same")) == 1
    assert (row["row_a"], row["row_b"], "") not in pairs
    run(*prepare[1:])
    groups = read_clusters("clusters-decided").clusters.groups
    assert groups is not None
    assert groups[int(row["row_a"])] == groups[int(row["row_b"])]
    assert len(groups.unique()) == N - 1


def test_decisions_about_other_data_are_refused(data: Path, tmp_path: Path) -> None:
    run("check", data, "--no-choose")
    row = decide(Path("check/suspects.csv"), "same")
    lines = data.read_text().splitlines()
    place = int(row["row_a"]) + 1
    path, _, item = lines[place].split("\t")
    lines[place] = "\t".join([path, "another text", item])
    other = tmp_path / "other.csv"
    other.write_text("\n".join(lines) + "\n")
    for command in (("check", other, "--no-choose"), ("prepare", other, "clusters-decided")):
        shown = run(*command, "--decided", "check/suspects.csv", code=2)
        assert "suspects.csv, row 1 below its header: text_a is" in shown.stderr
        assert shown.stderr.count("\n") <= 2
    assert not Path("clusters-decided").exists()


def test_tars_are_checked_with_pictures_and_refuse_decisions(data: Path, tmp_path: Path) -> None:
    tars = write_tars(tmp_path, N)
    run("check", tars, "--no-choose")
    assert "data:image/webp" in Path("check/index.html").read_text()
    decide(Path("check/suspects.csv"), "different")
    shown = run("check", tars, "--no-choose", "--decided", "check/suspects.csv", "--output", "other")
    assert "trains without your decisions" not in unwrapped(shown.stdout)  # no group changed
    decide(Path("check/suspects.csv"), "same")
    shown = run("check", tars, "--no-choose", "--decided", "check/suspects.csv", "--output", "again")
    assert "So the train command trains without your decisions." in unwrapped(shown.stdout)
    assert [words[1] for words in next_commands(shown)] == ["train"]
    shown = run("prepare", tars, "clusters", "--decided", "check/suspects.csv", code=2)
    assert "--decided needs a table, not tars" in shown.stderr


def test_prepare_leads_to_check_and_check_to_train(data: Path) -> None:
    shown = run("prepare", data, "clusters", "--group-column", "item")
    (words,) = next_commands(shown)
    assert words[:3] == ["clip-negatives", "check", "clusters"]
    shown = run(*words[1:], "--no-choose")
    (train,) = next_commands(shown)
    assert train[1:4] == ["train", "--clusters", "clusters"]
    assert train[train.index("--train-data") + 1] == str(data)


def test_the_choice_is_part_of_the_answer(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clip_negatives.choosing import menu

    monkeypatch.setattr(menu, "METHODS", ("default@0.1",))
    monkeypatch.setattr(menu, "DROPOUTS", (0.1,))
    shown = run("check", data, "--json", "answer.json")
    answer = json.loads(Path("answer.json").read_text())
    assert answer["choice"]["method"] in answer["answers"]["What to do?"][0]
    assert f"queries in 3 folds. Held out: {answer['choice']['held_out']}" in unwrapped(shown.stdout)
    assert "Methods that were compared" in Path("check/index.html").read_text()


@pytest.mark.parametrize("command", ["meter", "inspect"])
def test_meter_and_inspect_have_the_same_verdict(data: Path, command: str) -> None:
    shown = run("check", data, "--group-column", "item", "--no-choose")
    verdict = shown.stdout.splitlines()[1].strip()
    other = run(command, data, "--group-column", "item", "--batch-size", "32")
    text = other.stdout if command == "meter" else Path("report/index.html").read_text()
    assert verdict in text


def test_a_group_that_is_too_large_names_the_option_of_choose(data: Path) -> None:
    table = data.read_text().splitlines()
    data.write_text("\n".join([f"{table[0]}\tseller", *(f"{line}\tone" for line in table[1:])]) + "\n")
    shown = run("check", data, "--group-column", "seller")
    assert "Use --fold-by (and --data) of clip-negatives choose with a column that has several values." in unwrapped(
        shown.stdout
    )


def test_json_on_stdout_is_alone(data: Path) -> None:
    shown = run("check", data, "--no-choose", "--json", "-")
    assert json.loads(shown.stdout)["answers"]["What to do?"]
    assert "Are there false negatives?" in shown.stderr


@pytest.mark.parametrize("command", [("check", "DATA"), ("prepare", "DATA", "clusters")])
def test_a_missing_file_of_decisions_is_an_error(data: Path, command: tuple[str, ...]) -> None:
    words = [str(data) if word == "DATA" else word for word in command]
    shown = run(*words, "--decided", "nothing.csv", code=2)
    assert shown.stderr == "Error: The file of suspect pairs nothing.csv does not exist. Check its path.\n"
