"""Ray and Spark hand out independent tasks, on one machine; the parts are those of a single task."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from clip_negatives import Recipe
from clip_negatives.pipelines.encoded_parts import encode_parts
from tests.pairs import write_tars

RECIPE = Recipe(image_encoder="pixels:dim=0", text_encoder="hashing:dim=16")
N_TASKS = 3


def _content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def expected(tmp_path: Path) -> tuple[str, dict[str, bytes]]:
    """Return five tars and the files of their parts, written by a single task."""
    write_tars(tmp_path, 30, shards=5)
    data = f"{tmp_path}/pairs-{{000000..000004}}.tar"
    encode_parts(data, tmp_path / "single", RECIPE, progress=False)
    return data, _content(tmp_path / "single")


def _check(reports: list[Any], found: Path, expected: dict[str, bytes]) -> None:
    assert sorted(name for report in reports for name in report.done) == sorted(
        {file.split("/")[0] for file in expected if file.endswith("part.json")}
    )
    assert _content(found) == expected


def test_ray(expected: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from clip_negatives.integrations.ray import run_tasks

    data, content = expected
    ray.init(num_cpus=N_TASKS, include_dashboard=False, log_to_driver=False)
    try:
        resources = {"num_cpus": 1, "max_retries": 1}
        reports = run_tasks(encode_parts, data, tmp_path / "ray", RECIPE, n_tasks=N_TASKS, resources=resources, progress=False)
    finally:
        ray.shutdown()
    _check(reports, tmp_path / "ray", content)


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark(expected: tuple[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark")
    from pyspark.sql import SparkSession

    from clip_negatives.integrations.spark import run_tasks

    data, content = expected
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    session = SparkSession.builder.master(f"local[{N_TASKS}]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        reports = run_tasks(session, encode_parts, data, tmp_path / "spark", RECIPE, n_tasks=N_TASKS, progress=False)
    finally:
        session.stop()
    _check(reports, tmp_path / "spark", content)
