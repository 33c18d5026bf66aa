"""The study of heads, small: it runs, goes on where it stopped, and its page can be written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clip_negatives import catalogue
from clip_negatives.artifacts import codes

pytest.importorskip("tomllib")
sys.path.insert(0, str(Path(__file__).parent))
import heads
import page

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
[data.category]
groups = ["flags", "activities"]
[methods]
in_batch = ["in_batch"]
weight = ["weight", "weight:by=either"]
gcbs = ["gcbs+uniform"]
"""


def write_features(folder: Path) -> None:
    """Write features in the place of those of pictures and texts, which take minutes: noise around a point for each item."""
    generator = torch.Generator().manual_seed(0)
    study = {"image_encoder": "pixels", "text_encoder": "tfidf", "cache": str(folder)}
    items = codes(catalogue.load("all").column("item"))
    points = torch.randn(int(items.max()) + 1, 24, generator=generator)
    names = dict(zip(catalogue.load("all").column("item"), items.tolist(), strict=True))
    for split, file in heads.feature_files(study).items():
        rows = torch.tensor([names[item] for item in catalogue.load(split).column("item")])
        sides = [points[rows] + 0.5 * torch.randn(len(rows), 24, generator=generator) for _ in range(2)]
        torch.save([F.normalize(side, dim=1) for side in sides], file)


def test_study_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A second call runs nothing and finds the same."""
    (tmp_path / "study.toml").write_text(SMALL)
    write_features(tmp_path)
    result = tmp_path / "results" / "machine" / page.FILE
    command = ["heads.py", "--study", str(tmp_path / "study.toml"), "--output", str(result), "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--workers", "1"])
    heads.main()
    assert capsys.readouterr().out.count("Rank@1") == 2 + 2 + 3 * 2
    first = result.read_text()
    heads.main()
    assert capsys.readouterr().out == ""
    assert result.read_text() == first
    data = json.loads(first)["data"]["category"]
    assert data["near_duplicates_per_anchor"] > 0
    for one in data["methods"].values():
        assert one["text_to_image_rank_10"]["mean"] > 3 * 10 / data["queries"]  # chance
        assert one["text_to_image_rank_1"]["low"] <= one["text_to_image_rank_1"]["gain"] <= one["text_to_image_rank_1"]["high"]
    assert data["methods"]["in_batch"]["text_to_image_rank_1"]["low"] == 0
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    assert "| **in_batch** |" in page.page()
    page.plot(data, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000
