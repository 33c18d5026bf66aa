"""The study of heads at small size: it runs, continues after an interruption, and its page can be written."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from clip_negatives import catalogue
from clip_negatives.storage.sample_ids import integer_ids

pytest.importorskip("tomllib")
sys.path.insert(0, str(Path(__file__).parent))
import choices
import costs
import equal_candidates
import folds
import gradients
import heads
import page
import plots
import runs
import tomllib
from head_training import Job

SMALL = """
image_encoder = "pixels"
text_encoder = "tfidf"
dim = 16
batch_size = 64
steps = 20
learning_rates = [1e-3, 1e-2]
validation_style = "fluent-flat"
validation_seeds = 1
test_seeds = 2
[compared]
gcbs = "weight"
[data.category]
groups = ["flags", "activities"]
[data.few_clusters]
groups = ["flags", "activities"]
clusterer = "kmeans:n_clusters=8"
refresh = 2
methods = ["in_batch", "default", "siglip"]
[methods]
in_batch = ["in_batch"]
weight = ["weight", "weight:by=either"]
gcbs = ["gcbs+uniform"]
default = ["default"]
siglip = ["siglip:of=weighted_infonce"]
"""


def write_features(folder: Path) -> None:
    """Write made-up features, noise around a point for each item, because encoding takes minutes."""
    generator = torch.Generator().manual_seed(0)
    study = {"image_encoder": "pixels", "text_encoder": "tfidf", "cache": str(folder)}
    items = integer_ids(catalogue.load("all").column("item"))
    points = torch.randn(int(items.max()) + 1, 24, generator=generator)
    sides = [F.normalize(points[items] + 0.5 * torch.randn(len(items), 24, generator=generator), dim=1) for _ in range(2)]
    torch.save(tuple(sides), folds.features_file(study, folds.EMOJI))


def test_folds_share_no_seller() -> None:
    """Queries are of another seller than the training listings, and of items that are trained on."""
    study = {"validation_style": "fluent-flat", "data": {"all": {}}}
    for fold, seller in (("validation", "fluent-flat"), ("test", "twemoji")):
        cut = folds.Cut.of(study, "all", fold)
        assert seller not in cut.column("style", cut.trained)
        assert set(cut.column("style", cut.asked)) == {seller}
        asked = cut.column("item", cut.asked)
        assert len(set(asked)) == len(asked) > 1000
        assert set(asked) <= set(cut.column("item", cut.trained))


def test_folds_of_a_source_with_splits(tmp_path: Path) -> None:
    """One listing of each group is queried; the test trains on the queries of validation too."""
    rows = {"key": list("abcdef"), "item": list("aabbcd"), "text": list("uvwxyz"), "image": [b""] * 6}
    splits = ["train", "train", "validation", "validation", "test", "test"]
    pq.write_table(pa.table({**rows, "split": splits}), tmp_path / "parts.parquet")
    study = {"cache": str(tmp_path), "data": {"parts": {"source": "parts"}}}
    found = {fold: folds.Cut.of(study, "parts", fold) for fold in folds.FOLDS}
    assert found["validation"].column("key", found["validation"].trained) == ["a", "b"]
    assert found["validation"].column("key", found["validation"].asked) == ["c"]
    assert found["test"].column("key", found["test"].trained) == ["a", "b", "c", "d"]
    assert found["test"].column("key", found["test"].asked) == ["e", "f"]
    assert found["test"].near_duplicates(4) == 1.0


def test_study_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A second call runs nothing and has the same result."""
    (tmp_path / "study.toml").write_text(SMALL)
    write_features(tmp_path)
    result = tmp_path / "results" / "machine" / page.HEADS
    command = ["heads.py", "--study", str(tmp_path / "study.toml"), "--output", str(result), "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--workers", "1"])
    heads.main()
    # In-batch negatives do not depend on clusters, so both data sets share their runs.
    assert capsys.readouterr().out.count("Rank@1") == 2 + 2 + 5 * 2 + 2 * 2
    first = result.read_text()
    heads.main()
    assert capsys.readouterr().out == ""
    assert result.read_text() == first
    data = json.loads(first)["data"]["category"]
    assert data["near_duplicates_per_anchor"] > 0
    for method in data["methods"].values():
        assert method["text_to_image_rank_10"]["mean"] > 3 * 10 / data["queries"]  # chance
        assert (
            method["text_to_image_rank_1"]["low"]
            <= method["text_to_image_rank_1"]["gain"]
            <= method["text_to_image_rank_1"]["high"]
        )
    assert data["methods"]["in_batch"]["text_to_image_rank_1"]["low"] == 0
    assert any(figure["gain"] != 0 for figure in data["methods"]["gcbs"]["over_weight"].values())
    assert set(json.loads(first)["data"]["few_clusters"]["methods"]) == {"in_batch", "default", "siglip"}
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(page.answers, "heads", lambda _: "")  # it names methods that this small study lacks
    assert "| **in_batch** |" in "\n".join(page.pages().values())
    plots.plot_gains(data, tmp_path / "gains.svg")
    plots.plot_densities(json.loads(first)["data"], tmp_path / "densities.svg")
    assert all(len(set(ET.parse(tmp_path / f"{name}.svg").getroot().iter())) > 50 for name in ("gains", "densities"))
    measured = tmp_path / "results" / "machine" / page.COSTS
    command_of_costs = ["costs.py", *command[1:3], "--chosen", str(result), "--output", str(measured), *command[5:]]
    monkeypatch.setattr(sys, "argv", command_of_costs)
    costs.main()
    told = json.loads(measured.read_text())["data"]
    assert set(told["category"]) == set(data["methods"])
    assert all(one["cpu_ms"] > 0 and one["peak_memory_mib"] > 10 for one in told["category"].values())
    assert f"| {told['category']['gcbs']['peak_memory_mib']:.0f} |" in "\n".join(page.pages().values())
    # With --only, one run is made again and the other rows stay.
    for file in (tmp_path / "heads").iterdir():
        file.unlink()
    monkeypatch.setattr(sys, "argv", [*command, "--workers", "1", "--data", "category", "--only", "gcbs"])
    heads.main()
    assert capsys.readouterr().out.count("gcbs") == 2
    again = json.loads(result.read_text())["data"]["category"]["methods"]
    assert again == data["methods"]


def test_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that knows the items agrees with itself and does not push removed pairs."""
    write_features(tmp_path)
    study, result = tmp_path / "study.toml", tmp_path / "results" / "machine" / page.GRADIENTS
    study.write_text(SMALL.replace('groups = ["flags", "activities"]', 'groups = ["flags", "activities"]\nlr = 1e-2'))
    monkeypatch.setattr(gradients, "METHODS", ("in_batch", "default", gradients.ORACLE))
    command = ["gradients.py", "--study", str(study), "--output", str(result), "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    gradients.main()
    moments = json.loads(result.read_text())["data"]["category"]["moments"]
    assert set(moments) == {"start", "middle", "end"}
    for rows in moments.values():
        assert rows[gradients.ORACLE]["agreement"]["mean"] == pytest.approx(1, abs=1e-5)
        assert rows[gradients.ORACLE]["false_push"]["mean"] == 0
        assert 0 < rows["in_batch"]["false_push"]["mean"] < 1
        assert rows["in_batch"]["agreement"]["mean"] < 1
    # The push is at most 1 for each anchor, half of it from images and half from texts.
    assert 0 < moments["end"]["in_batch"]["push"]["mean"] < 64
    assert "| category | **in_batch** |" in page.gradients_table(json.loads(result.read_text())["data"])


def test_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The regret is that of the chosen method; candidates that do not differ are hardly ever said to differ."""
    write_features(tmp_path)
    study, result = tmp_path / "study.toml", tmp_path / "choices.json"
    setting = f'choice_seeds = 1\nbeside = ["id_mask:by=group@0.1"]\nmethods = "gist@0.1"\n{SMALL.split("[compared]")[0]}'
    study.write_text(f'{setting}[data.category]\ngroups = ["flags", "activities"]\nlr = 1e-2\n')
    command = ["choices.py", "--study", str(study), "--output", str(result), "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--workers", "1"])
    choices.main()
    rows = json.loads(result.read_text())["data"]["category"]
    assert set(rows) == {"near-duplicates", "groups", "beside"}
    methods = {"in_batch", *(f"in_batch@{held}" for held in ("0.05", "0.07", "0.1", "0.14")), "gist@0.1"}
    dropout = {"in_batch@0.1 dropout 0.1", "in_batch@0.1 dropout 0.2"}
    assert set(rows["beside"]) == {*methods, *dropout, "id_mask:by=group@0.1"}
    for question in ("near-duplicates", "groups"):
        row = rows[question]
        scores = {name: figures["mrr"] for name, figures in row["test"].items()}
        assert set(scores) == methods
        assert all(figures["rank_1"] <= figures["mrr"] <= figures["rank_10"] for figures in row["test"].values())
        assert row["regret"] == pytest.approx(max(scores.values()) / scores[row["chosen"]] - 1)
        assert row["over_held"]["low"] <= row["over_held"]["gain"] <= row["over_held"]["high"]
    monkeypatch.setattr(sys, "argv", [*command[:4], str(tmp_path / "equal.json"), *command[5:], "--pool", "14"])
    equal_candidates.main()
    figures = json.loads((tmp_path / "equal.json").read_text())["data"]["category"]
    assert figures["studies"] == equal_candidates.STUDIES
    assert figures["claims"] <= 6  # 2 are expected; 7 or more have a probability of 0.3 %


def test_runs_are_named_by_what_they_depend_on(tmp_path: Path) -> None:
    """Two data sets that differ in clusters only share the runs of methods without clusters."""
    study = {**tomllib.loads(SMALL), "cache": str(tmp_path)}
    found = runs.Runs(study, 1)
    one, other = (
        [found._file(Job(data, "test", method, 0.1, 0)) for method in ("in_batch", "default")]
        for data in ("category", "few_clusters")
    )
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_layout_and_words_do_not_make_another_run() -> None:
    """Another docstring keeps the cached runs valid; another operator does not."""
    code = 'def f(x):\n    """Say."""\n    return x + 1\n'
    assert runs.code_of(code) == runs.code_of('"""M."""\ndef f(x):  # why\n    """Say more."""\n\n    return x + 1\n')
    assert runs.code_of(code) != runs.code_of(code.replace("+", "-"))
