"""The study of trained models at small size: it runs, continues after an interruption, and its page can be written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("tomllib")
sys.path.insert(0, str(Path(__file__).parent))
import page
import tomllib
import trained
from trained_tables import trained_section

from clip_negatives.compare import parse_methods

KEYS = {"source", "styles", "tones", "groups", "batch_size", "clusterer", "refresh", "lr", "learning_rates", "methods", "tried"}

SMALL = """
name = "small"
model = "clip-negatives-tiny"
arguments = ["--warmup", "1"]
image_encoder = "pixels"
text_encoder = "tfidf"
batch_size = 128
steps = 3
learning_rates = [4e-3]
validation_style = "fluent-flat"
validation_seeds = 1
test_seeds = 2
methods = ["in_batch", "paper"]
[data.objects]
groups = ["objects"]
styles = ["noto", "noto-v1", "fluent-flat"]
"""


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("*.toml")), ids=lambda file: file.stem)
def test_study_files_name_methods_that_there_are(file: Path) -> None:
    """No study file has a misspelt method or key."""
    study = tomllib.loads(file.read_text())
    methods = study.get("methods", ["in_batch"])  # without methods: the menu of `choose`
    specs = methods if isinstance(methods, list) else [spec for candidates in methods.values() for spec in candidates]
    specs = [*specs, *study.get("tried", []), *(spec for data in study["data"].values() for spec in data.get("tried", []))]
    assert "in_batch" in specs
    assert set(specs) <= {name for spec in specs for name in parse_methods(spec)}
    for data in study["data"].values():
        assert set(data) <= KEYS
        assert set(data.get("methods", [])) <= set(methods)


def section(result: Path) -> str:
    """Return the section of the page about a result file."""
    return "\n".join(trained_section(json.loads(result.read_text()), "{title}"))


def test_study_of_trained_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run is done once; queries and training listings share no seller."""
    (tmp_path / "study.toml").write_text(SMALL)
    result = tmp_path / "results" / "machine" / page.TRAINED[0]
    command = ["trained.py", "--study", str(tmp_path / "study.toml"), "--output", str(result), "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    trained.main()
    assert capsys.readouterr().out.count("objects, test") == 3 * 2
    found = json.loads(result.read_text())["data"]["objects"]
    assert set(found["summaries"]) == {"in_batch", "paper", "random_reduction"}
    assert found["queries"] > 200
    assert all(run["steps"] >= 3 for run in found["runs"])
    assert str(tmp_path) not in result.read_text()
    made = next(tmp_path.rglob("test/asked.csv")).read_text()
    assert "twemoji-" in made
    assert "noto-" not in made
    assert "| `paper` |" in section(result)
    first = json.loads(result.read_text())
    monkeypatch.setattr(sys, "argv", [*command, "--only", "in_batch"])
    trained.main()
    assert capsys.readouterr().out.count("objects, test") == 2 * 2  # the baseline and the control
    again = json.loads(result.read_text())["data"]["objects"]
    assert again["summaries"] == first["data"]["objects"]["summaries"]
    assert len(again["runs"]) == len(first["data"]["objects"]["runs"])
    assert list(again["validated"]) == ["0.004"]  # --only does not validate again
    monkeypatch.setattr(sys, "argv", [*command, "--rates"])
    trained.main()
    assert "objects, test" not in capsys.readouterr().out
    assert json.loads(result.read_text())["data"]["objects"] == again
    monkeypatch.setattr(trained, "methods_of", lambda *_: ["in_batch"])
    monkeypatch.setattr(sys, "argv", [*command, "--times"])
    trained.main()
    timed = json.loads(result.read_text())["data"]["objects"]
    assert set(timed["seconds_per_step"]) == {"in_batch", "random_reduction"}
    assert {name: value for name, value in timed.items() if name != "seconds_per_step"} == again
    assert f"| {1000 * timed['seconds_per_step']['in_batch']:.0f} |" in section(result)
    monkeypatch.setattr(sys, "argv", [*command, "--only", "in_batch"])
    trained.main()
    kept = json.loads(result.read_text())["data"]["objects"]
    assert {name: kept[name] for name in timed if name != "setting"} == {n: v for n, v in timed.items() if n != "setting"}


def test_figures_of_another_learning_rate_are_not_taken() -> None:
    """Figures of another learning rate than the best one are an error."""
    ranks = {2e-3: 0.1, 4e-3: 0.2, 8e-3: 0.2}
    kept = {"lr": 4e-3, "samples": 5}
    assert trained.with_rates(kept, ranks, "few") == {**kept, "validated": {"0.002": 0.1, "0.004": 0.2, "0.008": 0.2}}
    with pytest.raises(SystemExit, match=r"of few is 0\.004, that of its figures 0\.002"):
        trained.with_rates({"lr": 2e-3}, ranks, "few")
