"""Training through open_clip's own loop, in this process."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import open_clip_train.main
import pandas as pd
import pytest
import torch

from clip_negatives import Columns, Recipe, read_clusters
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ClipNegativesError, DataError, InputError, UnsupportedError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.step import BatchSamples

from .conftest import BATCH, ROWS, logged_losses


def _losses(arguments: list[str], name: str) -> list[float]:
    log = Path(arguments[arguments.index("--logs") + 1]) / name / "out.log"
    return [float(text.split()[0]) for text in logged_losses(log)]


def test_default_method_trains_and_every_sample_is_seen_at_most_once(arguments: list[str]) -> None:
    seen: list[BatchSamples] = []
    train([*arguments, "--name", "paper"], TrainOptions(on_batch=seen.append))
    losses = _losses(arguments, "paper")
    assert len(losses) == len(seen) == ROWS // BATCH
    assert losses[-1] < losses[0]
    together = BatchSamples.concatenate(seen).ids
    assert len(together.unique()) == len(together) == ROWS


def test_functions_of_open_clip_are_put_back(arguments: list[str]) -> None:
    before = dict(vars(open_clip_train.main))
    train([*arguments, "--name", "run"], TrainOptions(sampler="in_batch", weighting="uniform"))
    assert vars(open_clip_train.main) == before


@pytest.mark.parametrize("backend", ["torch", "chunked"])
def test_weights_reach_the_loss(arguments: list[str], backend: str) -> None:
    """With nine of ten incorrect pairs removed a new model's loss is log(1 + 0.1 (B - 1)), not log(B)."""
    train([*arguments, "--name", "few"], TrainOptions(weighting="random_reduction:share=0.9", backend=backend))
    assert _losses(arguments, "few")[0] == pytest.approx(math.log(1 + 0.1 * (BATCH - 1)), rel=0.25)


def test_a_weighting_that_removes_every_pair_is_refused_before_anything_is_written(
    arguments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"random_reduction:share=1\.0 removes all of 65,536 .* learn nothing"):
        train([*arguments, "--name", "none"], TrainOptions(weighting="random_reduction:share=1.0"))
    assert list(tmp_path.iterdir()) == []


def test_a_batch_whose_every_pair_is_removed_is_told(arguments: list[str], caplog: pytest.LogCaptureFixture) -> None:
    of_one_cluster = TrainOptions(
        "one_cluster", "gate:image_quantile=none,image_threshold=0.99", recipe=Recipe(clusterer="kmeans:n_clusters=2")
    )
    with caplog.at_level("WARNING"):
        train([*arguments, "--batch-size", "8", "--name", "one"], of_one_cluster)
    told = [record.getMessage() for record in caplog.records if "removes all" in record.message]
    assert len(told) == 1
    assert "incorrect pairs of the first batch of the sampler one_cluster" in told[0]
    assert _losses(arguments, "one")[0] == 0.0
    train([*arguments, "--name", "default"], TrainOptions())
    assert len([record for record in caplog.records if "removes all" in record.message]) == 1


def test_accumulation_passes_the_index_of_all_micro_batches(arguments: list[str]) -> None:
    options = TrainOptions(weighting="weighted_infonce:similarity=sample")
    train([*arguments, "--accum-freq", "2", "--name", "run"], options)
    assert len(_losses(arguments, "run")) == ROWS // BATCH // 2


@pytest.mark.parametrize("options", [{}, {"refresh_every": 1}])
def test_batches_know_the_progress_of_the_training(arguments: list[str], options: dict[str, Any]) -> None:
    seen: list[BatchSamples] = []
    weighting = "weighted_infonce:warmup=1"
    train([*arguments, "--epochs", "2", "--name", "run"], TrainOptions(weighting=weighting, on_batch=seen.append, **options))
    n_batches = 2 * (ROWS // BATCH)
    assert [float(samples.progress) for samples in seen] == pytest.approx([place / n_batches for place in range(n_batches)])


def test_compiled_model(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # What could go wrong is in the tracing; the default backend would spend minutes on building C++.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    train([*arguments, "--torchcompile", "--name", "run"])
    assert len(_losses(arguments, "run")) == ROWS // BATCH


@pytest.mark.parametrize(
    ("method", "validated"),
    [
        ({"refresh_every": 1}, False),
        ({"sampler": "in_batch"}, True),
        ({"weighting": "sogclr"}, False),
        ({"weighting": "weighted_infonce:warmup=0.9"}, False),
    ],
    ids=["refresh", "in_batch", "state", "schedule"],
)
def test_resume_latest_goes_on_as_if_never_stopped(
    arguments: list[str], method: dict[str, Any], validated: bool, train_csv: Path
) -> None:
    """Batches and losses are equal: with workers=0, torch's random generator also determines the augmentation."""
    seen: list[BatchSamples] = []
    options = TrainOptions(**method, on_batch=seen.append)
    line = [*arguments, "--epochs", "3", "--name", "run", *(["--val-data", str(train_csv)] if validated else [])]
    train(line, options)
    losses, batches = _losses(arguments, "run"), [samples.ids.tolist() for samples in seen]
    run = Path(arguments[arguments.index("--logs") + 1]) / "run"
    (run / "checkpoints" / "epoch_3.pt").unlink()
    seen.clear()
    train([*line, "--resume", "latest"], options)
    assert [samples.ids.tolist() for samples in seen] == batches[2 * ROWS // BATCH :]
    assert _losses(arguments, "run")[len(losses) :] == losses[2 * ROWS // BATCH :]


def test_refresh_stores_clusters_of_the_model_and_changes_batches(arguments: list[str]) -> None:
    seen: list[BatchSamples] = []
    train([*arguments, "--epochs", "2", "--name", "run"], TrainOptions(refresh_every=1, on_batch=seen.append))
    folder = Path(arguments[arguments.index("--logs") + 1]) / "run" / "clip_negatives" / "clusters-epoch-1"
    clusters = read_clusters(folder).clusters
    assert clusters.n_samples == ROWS
    assert clusters.image_features is not None
    assert clusters.image_features.shape == (ROWS, 128)
    assert len(seen) == 2 * ROWS // BATCH
    assert len(BatchSamples.concatenate(seen[ROWS // BATCH :]).ids.unique()) == ROWS


@pytest.mark.parametrize("more", [[], ["--accum-freq", "2", "--workers", "2"]])
def test_extra_texts_reach_the_loss(arguments: list[str], more: list[str]) -> None:
    """Twice the texts for the images, and as many images for the texts: by chance, the mean of log 3B and log B."""
    train(
        [*arguments, *more, "--lr", "0", "--name", "run"],
        TrainOptions(sampler="reliable_texts:per_image=2", weighting="uniform"),
    )
    losses = _losses(arguments, "run")
    train([*arguments, *more, "--lr", "0", "--name", "plain"], TrainOptions(sampler="in_batch", weighting="uniform"))
    plain = _losses(arguments, "plain")
    assert len(losses) == len(plain) > 0
    assert sum(losses) / len(losses) - sum(plain) / len(plain) == pytest.approx(math.log(3) / 2, abs=0.05)


@pytest.mark.parametrize("more", [[], ["--accum-freq", "2", "--workers", "2"]])
def test_extra_images_reach_the_loss(arguments: list[str], more: list[str]) -> None:
    """Twice the texts for the images, and twice the images for the texts."""
    how = [*arguments, *more, "--lr", "0", "--name"]
    train([*how, "run"], TrainOptions(sampler="triplets:top=100", weighting="uniform"))
    train([*how, "plain"], TrainOptions(sampler="in_batch", weighting="uniform"))
    losses, plain = _losses(arguments, "run"), _losses(arguments, "plain")
    assert len(losses) == len(plain) > 0
    assert sum(losses) / len(losses) - sum(plain) / len(plain) == pytest.approx(math.log(2), abs=0.1)


def test_a_resumed_run_redraws_the_same_captions(arguments: list[str], train_csv: Path, tmp_path: Path) -> None:
    titles = pd.read_csv(train_csv, sep="\t")["title"].tolist()
    file, seen = tmp_path / "rewrites.jsonl", list[BatchSamples]()
    rows = [{"text": title, "captions": [f"{title} {kind}" for kind in ("photo", "icon", "drawing")]} for title in titles]
    file.write_text("\n".join(map(json.dumps, rows)))
    options = TrainOptions(sampler=f"redrawn_captions:file={file},positives=2", weighting="uniform", on_batch=seen.append)
    line = [*arguments, "--epochs", "2", "--name", "run"]
    train(line, options)
    losses, captions = _losses(arguments, "run"), [samples.text_ids.tolist() for samples in seen]
    assert {len(line) for batch in captions for line in batch} == {3}
    (Path(arguments[arguments.index("--logs") + 1]) / "run" / "checkpoints" / "epoch_2.pt").unlink()
    seen.clear()
    train([*line, "--resume", "latest"], options)
    assert [samples.text_ids.tolist() for samples in seen] == captions[ROWS // BATCH :]
    assert _losses(arguments, "run")[len(losses) :] == losses[ROWS // BATCH :]


@pytest.mark.parametrize("more", [[], ["--torchcompile"], ["--accum-freq", "2", "--precision", "amp_bf16"]])
def test_held_temperature(arguments: list[str], monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    train([*arguments, *more, "--epochs", "2", "--name", "run"], TrainOptions(temperature=0.1))
    run = Path(arguments[arguments.index("--logs") + 1]) / "run"
    scales = re.findall(r"Logit Scale: (\S+)", (run / "out.log").read_text())
    assert len(scales) == len(_losses(arguments, "run"))
    assert set(scales) == {"10.000"}
    state = torch.load(run / "checkpoints" / "epoch_2.pt", weights_only=True)["state_dict"]
    held = next(value for name, value in state.items() if name.endswith("logit_scale"))
    assert held.item() == pytest.approx(math.log(10), abs=1e-6)


def test_held_temperature_of_a_resumed_run_does_not_drift(arguments: list[str]) -> None:
    """What the optimizer remembers of learning the scale moves it no more."""
    train([*arguments, "--epochs", "2", "--lr", "1e-2", "--name", "run"])
    run = Path(arguments[arguments.index("--logs") + 1]) / "run"
    (run / "checkpoints" / "epoch_2.pt").unlink()
    lines = len((run / "out.log").read_text().splitlines())
    train(
        [*arguments, "--epochs", "2", "--lr", "1e-2", "--name", "run", "--resume", "latest"],
        TrainOptions(temperature=0.1, resume_anyway=True),
    )
    resumed = "\n".join((run / "out.log").read_text().splitlines()[lines:])
    assert set(re.findall(r"Logit Scale: (\S+)", resumed)) == {"10.000"}


def test_synthetic_data(arguments: list[str]) -> None:
    place = arguments.index("--train-data")
    arguments = [*arguments[:place], "--dataset-type", "synthetic", "--train-num-samples", "128", *arguments[place + 4 :]]
    train([*arguments, "--name", "run"])
    assert len(_losses(arguments, "run")) == 128 // BATCH
    with pytest.raises(UnsupportedError, match="adds captions, which synthetic data lack"):
        train([*arguments, "--name", "texts"], TrainOptions(sampler="swapped_words"))
    with pytest.raises(UnsupportedError, match="adds captions and images, which synthetic data lack"):
        train([*arguments, "--name", "texts"], TrainOptions(sampler="triplets"))
    assert not (Path(arguments[arguments.index("--logs") + 1]) / "texts").exists()


@pytest.mark.parametrize(
    "more", [["--siglip"], ["--distill-model", "RN50", "--distill-pretrained", "x"], ["--model", "coca_ViT-B-32"]]
)
def test_other_losses_are_refused(arguments: list[str], more: list[str]) -> None:
    with pytest.raises(UnsupportedError, match="contrastive loss of CLIP"):
        train([*arguments, *more, "--name", "run"])
    assert not Path(arguments[arguments.index("--logs") + 1]).exists()


@pytest.mark.parametrize(
    ("options", "more", "error", "words"),
    [
        (TrainOptions(sampler="in_bach"), [], ClipNegativesError, "Did you mean 'in_batch'"),
        (TrainOptions(weighting="weighted_infonce:bta=1"), [], ClipNegativesError, "Did you mean 'beta'"),
        (
            TrainOptions(recipe=Recipe(clusterer="kmeans:n_clusters=100000")),
            [],
            InputError,
            "more than the number of samples",
        ),
        (TrainOptions(), ["--train-data", "absent.csv"], DataError, "does not exist"),
        (TrainOptions(), ["--csv-caption-key", "caption"], DataError, "'title'"),
        (TrainOptions(), ["--csv-separator", ","], DataError, "--csv-separator"),
        (TrainOptions(), ["--batch-size", "1000"], DataError, "smaller --batch-size"),
        (TrainOptions(clusters=Path("absent")), [], ClipNegativesError, "clip-negatives prepare"),
        (TrainOptions(refresh_every=0), [], InputError, "refresh_every= must be at least 1"),
        (TrainOptions(sampler="hard_texts", weighting="cwcl"), [], UnsupportedError, "needs all logits"),
        (TrainOptions(temperature=5), [], InputError, "temperature of 0.01 .. 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments: list[str], options: TrainOptions, more: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        train([*arguments, *more, "--name", "run"], options)
    assert not Path(arguments[arguments.index("--logs") + 1]).exists()


def test_clusters_of_other_data_are_refused(arguments: list[str], train_csv: Path, tmp_path: Path) -> None:
    lines = train_csv.read_text().splitlines(keepends=True)
    swapped = tmp_path / "swapped.csv"
    swapped.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    prepare(open_pairs(swapped), tmp_path / "clusters", progress=False)
    with pytest.raises(ClipNegativesError, match="row 0 differs"):
        train([*arguments, "--name", "run"], TrainOptions(clusters=tmp_path / "clusters"))


def test_manifest_names_what_training_prepared(arguments: list[str]) -> None:
    train([*arguments, "--name", "run"])
    manifests = list(Path(os.environ["CLIP_NEGATIVES_CACHE"]).glob("*/manifest.json"))
    assert any(json.loads(file.read_text())["n_samples"] == ROWS for file in manifests)


def test_clusters_that_training_prepares_have_the_groups_of_the_recipe(arguments: list[str]) -> None:
    train([*arguments, "--name", "run"], TrainOptions(recipe=Recipe(columns=Columns(group="item"))))
    folders = [read_clusters(file.parent) for file in Path(os.environ["CLIP_NEGATIVES_CACHE"]).glob("*/manifest.json")]
    assert any(len(folder.samples) == ROWS and "group" in folder.samples.column_names for folder in folders)
