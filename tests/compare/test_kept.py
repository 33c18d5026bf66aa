"""A finished run is used again if its result is whole and nothing that it depends on has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clip_negatives.compare.results import FIGURES, read_run

METHOD = {"name": "in_batch", "sampler": "in_batch", "weighting": "uniform", "temperature": None}
RUN: dict[str, Any] = {
    **dict.fromkeys(FIGURES, 0.5),
    **{f"chance_rank_{k}": 0.1 for k in (1, 5, 10)},
    "method": METHOD,
    "seed": 0,
    "steps": 3,
    "queries": 3,
    "losses": [1.0, float("nan")],
    "false_negatives_truth": "text",
    "removed_share": None,
}


def written(folder: Path, stored: Any) -> Path:
    (folder / "result.json").write_text(stored if isinstance(stored, str) else json.dumps(stored))
    return folder / "result.json"


def test_whole_result(tmp_path: Path) -> None:
    found = read_run(written(tmp_path, {"identity": {"a": {"b": 1}}, "run": RUN}))
    assert found is not None
    assert found[0] == {"a": {"b": 1}}
    assert found[1]["text_to_image_rank_1"] == 0.5
    assert read_run(tmp_path / "absent.json") is None


@pytest.mark.parametrize(
    "stored", ["", "[]", "3", "[" * 100_000, {"identity": {}}, {"identity": {}, "run": []}, {"identity": "i", "run": RUN}]
)
def test_what_is_no_result(tmp_path: Path, stored: Any) -> None:
    assert read_run(written(tmp_path, stored)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"method": None},
        {"method": {**METHOD, "temperature": "hot"}},
        {"method": {name: METHOD[name] for name in ("name", "sampler", "weighting")}},
        {"losses": 3},
        {"losses": ["low"]},
        {"text_to_image_rank_1": None},
        {"text_to_image_mrr": None},
        {"text_to_image_rank_1": float("inf")},
        {"peak_memory_mib": "much"},
        {"false_weight": []},
        {"queries": True},
        {"chance_rank_5": None},
        {"false_negatives_truth": 1},
    ],
)
def test_results_that_lack_something(tmp_path: Path, change: dict[str, Any]) -> None:
    assert read_run(written(tmp_path, {"identity": {}, "run": {**RUN, **change}})) is None


def test_every_field_is_needed(tmp_path: Path) -> None:
    for name in RUN:
        run = {key: value for key, value in RUN.items() if key != name}
        assert read_run(written(tmp_path, {"identity": {}, "run": run})) is None, name
