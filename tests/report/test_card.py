"""Result cards: read by the hub's own library, equal for equal results, and never in place of a file of the user."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from clip_negatives.compare import Comparison
from clip_negatives.report import write_comparison_card, write_training_card
from clip_negatives.report.card import document
from clip_negatives.report.card.document import NAME
from clip_negatives.storage.provenance import write_record
from tests.report.test_comparison import HOSTILE, NAMES, QUERIES, made_up

ROOT = Path(__file__).parents[2]
DATA = {"images": "a" * 64, "texts": "b" * 64}
COMMAND = "clip-negatives compare --seeds 3 -- --train-data train.csv"
RECORD = {
    "data": {"kind": "csv", **DATA},
    "method": {"sampler": "in_batch", "weighting": "uniform", "temperature": None, "--refresh-every": None},
    "open_clip": {"model": "ViT-B-32", "seed": 7},
    "processes": {"number": 1},
    "versions": {"clip-negatives": "1", "torch": "2"},
    "clusters": {"content": "c" * 64, "clusterer": "kmeans:n_clusters=3", "seed": 0},
}


def comparison(**more: object) -> Comparison:
    result = made_up(**more)
    setting = result.setting | {"versions": {"torch": "2.0"}, "test": {"location": "/data/te|st.csv"}}
    setting |= {"train": {"location": "/data/train.csv"}, "data": {"training": DATA, "test": DATA}}
    return dataclasses.replace(result, setting=setting)


def trained(run: Path, record: object = RECORD, **more: object) -> Path | None:
    write_record(record, run / "clip_negatives" / "provenance.json")
    data = {"train_data": "/data/train.csv", "n_train": 1234, "val_data": None, **more}
    return write_training_card(run, "clip-negatives train -- --train-data train.csv", **data)


def test_the_hub_reads_the_card_of_a_comparison(tmp_path: Path) -> None:
    made = comparison()
    file = write_comparison_card(made, tmp_path, COMMAND)
    card = ModelCard.load(tmp_path / NAME)
    assert file == tmp_path / NAME
    assert card.data.library_name == "open_clip"
    assert {"clip", "clip-negatives"} <= set(card.data.tags)
    name, results = model_index_to_eval_results(metadata_load(tmp_path / NAME)["model-index"])
    assert name == "Comparison of negatives for tiny"
    assert len(results) == 2 * 4 * len(NAMES)
    measured = {
        (result.dataset_config, result.metric_name): result.metric_value
        for result in results
        if result.metric_type == "mrr" and "in_batch" in result.metric_name
    }
    mean = made.summaries["in_batch"]["text_to_image_mrr"].mean
    assert measured["text_to_image", "MRR of in_batch, mean over 3 seeds"] == pytest.approx(mean, abs=1e-6)
    assert {result.dataset_args["images"] for result in results} == {"a" * 64}


def test_the_card_says_what_was_compared_and_how(tmp_path: Path) -> None:
    made = comparison()
    write_comparison_card(made, tmp_path, COMMAND)
    text = ModelCard.load(tmp_path / NAME).text
    assert document.escaped(made.verdict) in text
    assert "(3 seeds.)" in text
    assert f"```bash\n{COMMAND}\n```" in text
    assert f"* Training: `train.csv`, 9 pairs, images `{'a' * 64}`" in text
    assert f"* Test: `te\\|st.csv`, {QUERIES} pairs" in text
    assert "* torch 2.0" in text
    assert "<script>" not in re.sub(r"`[^`\n]+`", "", text)
    assert "\u202e" not in text
    gain = str(made.gains["random_reduction"])
    assert f"| {gain} | control |" in text
    assert document.code(HOSTILE) in text
    assert "/data/" not in text


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_comparison_card(comparison(n_seeds=1), tmp_path, COMMAND)
    text = (tmp_path / NAME).read_text()
    assert "One seed cannot show whether methods differ" in text
    assert "(1 seed.)" in text
    assert "± " not in text
    assert not re.search(r"\| [+-][0-9.]+ % \[", text)


def test_equal_results_have_equal_cards_and_times_are_not_in_them(tmp_path: Path) -> None:
    for folder, seconds in (("a", 1.0), ("b", 2.0)):
        made = comparison(train_seconds=seconds, seconds_per_step=seconds, peak_memory_mib=seconds)
        setting = made.setting | {"prepare_seconds": seconds, "runs_reused": int(seconds), "machine": folder}
        write_comparison_card(dataclasses.replace(made, setting=setting), tmp_path / folder, COMMAND)
    assert (tmp_path / "a" / NAME).read_bytes() == (tmp_path / "b" / NAME).read_bytes()


def test_a_card_of_ours_is_replaced_and_a_file_of_the_user_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "README.md").write_text("precious")
    write_comparison_card(comparison(), tmp_path, COMMAND)
    write_comparison_card(comparison(), tmp_path, "another command")
    mine = (tmp_path / NAME).read_text()
    assert "another command" in mine
    for text in (mine.replace("another command", "edited"), "precious", mine + "notes\n"):
        (tmp_path / NAME).write_text(text)
        with caplog.at_level(logging.WARNING):
            assert write_comparison_card(comparison(), tmp_path, COMMAND) is None
        assert re.search(r"No result card was written: .*result-card.md was edited, or .* Move it", caplog.text)
        assert (tmp_path / NAME).read_text() == text
    assert {item.name for item in tmp_path.iterdir()} == {NAME, "README.md"}
    assert (tmp_path / "README.md").read_text() == "precious"


def test_a_training_without_evaluation_has_no_figures(tmp_path: Path) -> None:
    assert trained(tmp_path) == tmp_path / NAME
    card = ModelCard.load(tmp_path / NAME)
    assert "model-index" not in metadata_load(tmp_path / NAME)
    assert "datasets" not in metadata_load(tmp_path / NAME)
    assert "One run, with seed 7. This run measured nothing on held-out pairs." in card.text
    assert "* Training: `train.csv`, 1,234 pairs, images" in card.text
    assert "* temperature: `learned`" in card.text
    assert "* clusters, clusterer: `kmeans:n_clusters=3`" in card.text
    assert "refresh" not in card.text
    assert "processes" not in card.text


def test_a_training_on_several_processes_with_data_of_the_hub(tmp_path: Path) -> None:
    url = "https://huggingface.co/datasets/owner/pairs/resolve/main/train.parquet"
    trained(tmp_path, RECORD | {"processes": {"number": 4}}, train_data=url)
    assert metadata_load(tmp_path / NAME)["datasets"] == ["owner/pairs"]
    assert "Start it on 4 processes." in (tmp_path / NAME).read_text()


def test_the_last_evaluation_is_in_the_card(tmp_path: Path) -> None:
    lines = [
        {"image_to_text_R@1": 0.1, "text_to_image_mean_rank": 4.5, "clip_val_loss": 2.0, "epoch": 1, "num_samples": 50},
        {"image_to_text_R@1": 0.2, "text_to_image_mean_rank": float("nan"), "epoch": 2, "num_samples": 50},
    ]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained(tmp_path, val_data="/data/val.csv")
    _, results = model_index_to_eval_results(metadata_load(tmp_path / NAME)["model-index"])
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in results] == [("val.csv", "R@1", 0.2)]
    assert "Measured after epoch 2" in (tmp_path / NAME).read_text()


def test_a_damaged_record_leaves_no_card(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "clip_negatives").mkdir()
    (tmp_path / "clip_negatives" / "provenance.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert write_training_card(tmp_path, "", train_data=None, n_train=1, val_data=None) is None
    assert "No result card was written: the record" in caplog.text
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("text", ["plain", "a`b", "``", "a|b", "x\ny"])
def test_code_in_a_table_stays_one_cell(text: str) -> None:
    shown = document.code(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)\|", shown)
    fence = re.match("`+", shown)
    assert fence is not None
    assert shown.endswith(fence[0])


def test_the_citation_is_that_of_the_repository() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    for field in ("title", "pages", "url"):
        value = re.search(rf"  {field} = {{(.*)}}", document.PAPER)
        assert value is not None
        parts = value[1].split("--") if field == "pages" else [value[1]]
        assert all(part in citation for part in parts)
    names = re.findall(r"given-names: (.*)\n +family-names: (.*)\n", citation)
    assert " and ".join(f"{family}, {given}" for given, family in names) in document.PAPER


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("train --train-data https://me:hunter2@host/a.csv", "train --train-data https://HIDDEN@host/a.csv"),
        ("check 'https://host/a.csv?X-Sig=abc&X-Key=def'", "check 'https://host/a.csv?HIDDEN'"),
        ("""train 'pipe:curl -H "Authorization: Bearer abc" x'""", """train 'pipe:curl -H "Authorization: HIDDEN" x'"""),
        ("prepare 'shards/00?.tar' --text-encoder hashing:dim=64", "prepare 'shards/00?.tar' --text-encoder hashing:dim=64"),
    ],
)
def test_passwords_and_tokens_are_not_published(command: str, shown: str, tmp_path: Path) -> None:
    setting = comparison().setting
    train = {**setting["train"], "location": "https://me:hunter2@host/train.csv?X-Sig=abc&X-Key=def"}
    result = dataclasses.replace(comparison(), setting={**setting, "train": train})
    write_comparison_card(result, tmp_path, command)
    text = (tmp_path / NAME).read_text()
    assert f"```bash\n{shown}\n```" in text
    assert ("Passwords and tokens are replaced by HIDDEN." in text) == (command != shown)
    assert not any(secret in text for secret in ("hunter2", "=abc", "=def", "Bearer"))
