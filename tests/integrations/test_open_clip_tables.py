"""open_clip trains on tables that it cannot read itself, with the same samples as on a csv file."""

from __future__ import annotations

from pathlib import Path

import datasets
import pandas as pd
import pytest

from clip_negatives import Columns, Recipe
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.pipelines.prepare import prepare
from tests.integrations.conftest import logged_losses
from tests.pairs import write_csv, write_table

N = 64


def _arguments(data: Path, logs: Path, name: str) -> list[str]:
    return [
        *("--train-data", str(data), "--val-data", str(data), "--model", "clip-negatives-tiny", "--batch-size", "16"),
        *("--epochs", "1", "--lr", "1e-3", "--warmup", "2", "--workers", "0", "--precision", "fp32", "--device", "cpu"),
        *("--log-every-n-steps", "1", "--save-frequency", "0", "--logs", str(logs), "--name", name),
    ]


def test_every_table_trains_as_the_csv_file_does(tmp_path: Path) -> None:
    files = {"csv": write_csv(tmp_path, N)} | {kind: write_table(tmp_path, kind, N) for kind in ("jsonl", "embedded")}
    losses = {}
    for kind, file in files.items():
        train(_arguments(file, tmp_path / "logs", kind), TrainOptions(sampler="cluster_similarity"))
        log = tmp_path / "logs" / kind / "out.log"
        losses[kind] = (
            logged_losses(log),
            [line.split("Eval")[1] for line in log.read_text().splitlines() if "Eval Epoch" in line],
        )
        assert f"Reading {'filepath, title' if kind == 'csv' else 'image'}" in log.read_text()
    assert losses["csv"] == losses["jsonl"] == losses["embedded"]
    assert len(losses["csv"][0]) == N // 16


def test_clusters_of_a_table_belong_to_it(tmp_path: Path) -> None:
    file = write_table(tmp_path, "datasets", N)
    prepare(file, tmp_path / "clusters", progress=False)
    options = TrainOptions(clusters=tmp_path / "clusters", sampler="in_batch")
    other = datasets.load_from_disk(str(file)).cast_column("image", datasets.Image(decode=False))
    other = other.map(lambda row: {"image": {"bytes": row["image"]["bytes"] + b"?", "path": None}})
    other.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"The image of row 0 has \d+ bytes, but had"):
        train(_arguments(tmp_path / "other", tmp_path / "logs", "other"), options)
    datasets.load_from_disk(str(file)).select(range(N - 1, -1, -1)).save_to_disk(tmp_path / "reversed")
    with pytest.raises(ArtifactError, match="belong to other data"):
        train(_arguments(tmp_path / "reversed", tmp_path / "logs", "reversed"), options)
    assert not (tmp_path / "logs").exists()


def test_columns_of_training_and_validation_data_are_found_in_each(tmp_path: Path) -> None:
    file = write_csv(tmp_path, 32)
    pd.read_csv(file, sep="\t").set_axis(["img", "text", "sku"], axis=1).to_csv(tmp_path / "val.csv", index=False)
    arguments = _arguments(file, tmp_path / "logs", "run")
    arguments[arguments.index("--val-data") + 1] = str(tmp_path / "val.csv")
    train(arguments, TrainOptions(sampler="in_batch", weighting="uniform"))
    assert "Eval Epoch: 1" in (tmp_path / "logs" / "run" / "out.log").read_text()


def test_an_ambiguous_column_names_the_option_of_open_clip(tmp_path: Path) -> None:
    frame = pd.read_csv(write_csv(tmp_path, 32), sep="\t")
    frame.assign(text=frame["title"], image=frame["filepath"]).drop(columns="filepath").to_csv(tmp_path / "a.csv", index=False)
    arguments = _arguments(tmp_path / "a.csv", tmp_path / "logs", "run")
    with pytest.raises(DataError, match=r"several columns that may be the text .* Name one with --csv-caption-key\."):
        train(arguments, TrainOptions(sampler="in_batch"))
    train([*arguments, "--csv-caption-key", "text"], TrainOptions(sampler="in_batch", weighting="uniform"))


@pytest.mark.parametrize("weighting", ["id_mask:by=text", "multi_positive:by=group"])
def test_ids_of_texts_and_groups_need_no_clusters(weighting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_csv(tmp_path, N)
    recipe = Recipe(columns=Columns(group="item"))
    method = {"sampler": "in_batch", "weighting": weighting}
    prepare(file, tmp_path / "clusters", recipe, progress=False)
    train(_arguments(file, tmp_path / "logs", "clusters"), TrainOptions(**method, clusters=tmp_path / "clusters"))
    monkeypatch.setattr("clip_negatives.integrations.open_clip.preflight.prepare_cached", None)
    train(_arguments(file, tmp_path / "logs", "ids"), TrainOptions(**method, recipe=recipe))
    clusters, ids = (logged_losses(tmp_path / "logs" / name / "out.log") for name in ("clusters", "ids"))
    assert clusters == ids
