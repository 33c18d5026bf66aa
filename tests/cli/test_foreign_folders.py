"""No command deletes or replaces what another program wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from clip_negatives import Recipe
from clip_negatives.cli import main
from clip_negatives.pipelines.prepare import prepare
from tests.pairs import export


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a catalogue in tars, its clusters, and a small csv."""
    home = tmp_path_factory.mktemp("made")
    export(home / "catalogue", "test", range(96), format="both")
    csv = home / "pairs.csv"
    csv.write_text("".join((home / "catalogue" / "test.csv").read_text().splitlines(keepends=True)[:49]))
    recipe = Recipe(clusterer="kmeans:n_clusters=4")
    prepare(str(home / "catalogue" / "test-000000.tar"), home / "clusters", recipe, progress=False)
    return home


COMMANDS = {
    "prepare": (["prepare", "{made}/pairs.csv", "{output}"], "manifest.json"),
    "labels": (["labels", "{made}/clusters", "{output}"], "labels.json"),
    "reshard": (["reshard", "{made}/catalogue/test-000000.tar", "{made}/clusters", "{output}"], "sizes.json"),
    "inspect": (["inspect", "{made}/clusters", "--output", "{output}", "--batch-size", "32"], "report.json"),
    "compare": (["compare", "--quick", "--output", "{output}"], "results.json"),
    "catalogue": (["catalogue", "export", "{output}", "--split", "test"], "catalogue.json"),
}


@pytest.mark.parametrize("marker", ["{}", '{"files": {}}', None])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["project", "."])
def test_a_project_survives(
    command: str, marker: str | None, place: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, name = COMMANDS[command]
    (tmp_path / "project" / "src").mkdir(parents=True)
    (tmp_path / "project" / "src" / "thesis.tex").write_text("precious")
    if marker is not None:
        (tmp_path / "project" / name).write_text(marker)
    monkeypatch.chdir(tmp_path / "project" if place == "." else tmp_path)
    before = {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    line = [word.format(made=made, output=place) for word in arguments]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert "project" in result.stderr
    assert before == {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}


def test_notes_in_a_clusters_folder_survive(made: Path, tmp_path: Path) -> None:
    line = ["prepare", str(made / "pairs.csv"), str(tmp_path / "clusters"), "--clusterer", "kmeans:n_clusters=4"]
    assert CliRunner().invoke(main, line).exit_code == 0
    (tmp_path / "clusters" / "notes.md").write_text("precious")
    assert CliRunner().invoke(main, line).exit_code == 0
    assert (tmp_path / "clusters" / "notes.md").read_text() == "precious"
    assert {item.name for item in tmp_path.iterdir()} == {"clusters"}
