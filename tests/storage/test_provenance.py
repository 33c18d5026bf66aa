"""Records of runs: what they hold, and how their differences are put in words."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import clip_negatives
from clip_negatives.host import registry
from clip_negatives.storage.digests import package_digest, rows_digest, source_digest, weights_digest
from clip_negatives.storage.provenance import (
    as_json,
    differences,
    in_words,
    plugins_section,
    read_record,
    resolved,
    write_record,
)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            {"method": {"weighting": "weighted_infonce:beta=1.0,remove=False"}},
            {"method": {"weighting": "weighted_infonce:beta=2.0,remove=False"}},
            "the weighting was weighted_infonce:beta=1.0, is weighted_infonce:beta=2.0",
        ),
        (
            {"method": {"sampler": "in_batch", "temperature": None}},
            {"method": {"sampler": "hard_texts:of=in_batch", "temperature": 0.1}},
            "the sampler was in_batch, is hard_texts:of=in_batch; the temperature was none, is 0.1",
        ),
        ({"data": {"texts": "a" * 64}}, {"data": {"texts": "b" * 64}}, "the texts of the data differ"),
        ({"open_clip": {"pretrained": "openai"}}, {"open_clip": {"pretrained": "b" * 64}}, "--pretrained differs"),
        ({"clusters": {"content": None}}, {"clusters": {"content": "b" * 64}}, "the content of the clusters differs"),
        ({"open_clip": {"batch_size": 1, "pretrained": ""}}, {"open_clip": {"batch_size": 2, "pretrained": "openai"}},
         "--batch-size was 1, is 2; --pretrained was none, is openai"),
        ({"versions": {"torch": "1"}}, {"versions": {"torch": "2"}}, "the version of torch was 1, is 2"),
        (
            {"plugins": {"loss weighting a_b": {"version": "1", "source": "a" * 64}}},
            {"plugins": {"loss weighting a_b": {"version": "2", "source": "b" * 64}}},
            "the version of the loss weighting a_b was 1, is 2; the source of the loss weighting a_b differs",
        ),
        ({"method": {"--refresh-every": 1}}, {"method": {}}, "--refresh-every was 1, is none"),
        ({"open_clip": dict.fromkeys("abcdef", 1)}, {"open_clip": dict.fromkeys("abcdef", 2)},
         "--a was 1, is 2; --b was 1, is 2; --c was 1, is 2; --d was 1, is 2; and 2 more"),
    ],
)  # fmt: skip
def test_differences_in_words(first: dict[str, Any], second: dict[str, Any], words: str) -> None:
    assert in_words(differences(first, second)) == words
    assert differences(first, first) == []


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = as_json({"open_clip": {"image_mean": (0.5, 0.5), "path": Path("x")}, "method": {"temperature": None}})
    write_record(record, tmp_path / "run" / "provenance.json")
    assert read_record(tmp_path / "run" / "provenance.json") == record


@pytest.mark.parametrize("stored", ["", "[]", "{", '{"format": 99}', "{}", "[" * 100_000])
def test_record_that_cannot_be_compared(tmp_path: Path, stored: str) -> None:
    (tmp_path / "provenance.json").write_text(stored)
    assert read_record(tmp_path / "provenance.json") is None
    assert read_record(tmp_path / "absent.json") is None


def test_any_damaged_record_has_differences_in_words() -> None:
    for damaged in (
        {},
        {"method": 3},
        {"method": []},
        {"open_clip": {"a": {"b": None}}},
        {"versions": {}},
        {"data": {"": "a:"}},
    ):
        assert in_words(differences(damaged, {"method": {"sampler": "in_batch"}, "data": {"": "a:b"}}))


def test_specs_with_all_options() -> None:
    assert resolved("negative_sampler", "in_batch") == "in_batch"
    assert resolved("loss_weighting", "weighted_infonce") == resolved("loss_weighting", "weighted_infonce:beta=1")
    assert resolved("loss_weighting", "weighted_infonce:beta=2") != resolved("loss_weighting", "weighted_infonce")


def test_plugins_named_by_options_are_recorded() -> None:
    recorded = plugins_section([("negative_sampler", "reliable_texts"), ("loss_weighting", "siglip:of=weighted_infonce")])
    assert list(recorded) == [
        "negative sampler reliable_texts",
        "loss weighting siglip",
        "negative sampler in_batch",
        "negative sampler cluster_similarity",
        "loss weighting weighted_infonce",
    ]
    assert all(plugin["source"] for plugin in recorded.values())


def test_every_plugin_has_a_source() -> None:
    digests = {item.name: source_digest(item) for item in registry.default_registry().items()}
    assert None not in digests.values()
    assert digests["weighted_infonce"] == digests["cluster_similarity"]  # one top-level package


def test_source_is_the_whole_top_level_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("__init__.py", "shared.py", "plugins/__init__.py", "plugins/made.py"):
        (tmp_path / "company" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "company" / file).write_text("def factory(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("company.plugins.made")
    item = registry.Registration("clusterer", "c", "c", "d", "1", module.factory, (), "company.plugins.made")
    before = source_digest(item)
    (tmp_path / "company" / "shared.py").write_text("changed = 1\n")
    assert source_digest(item) != before
    for name in ("company", "company.plugins", "company.plugins.made"):
        del sys.modules[name]


def test_source_of_a_plain_module_is_all_modules_of_its_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("listed_plugin.py", "listed_helper.py"):
        (tmp_path / file).write_text("def factory(): ...\n")
    (tmp_path / "listed-1.0.dist-info").mkdir()
    (tmp_path / "listed-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: listed\nVersion: 1.0\n")
    (tmp_path / "listed-1.0.dist-info" / "RECORD").write_text("listed_plugin.py,,\nlisted_helper.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("listed_plugin")
    item = registry.Registration("clusterer", "c", "c", "listed", "1", module.factory, (), "listed_plugin")
    before = source_digest(item)
    (tmp_path / "listed_helper.py").write_text("changed = 1\n")
    assert source_digest(item) != before
    del sys.modules["listed_plugin"]


def test_source_of_a_package_changes_with_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "part.py").touch()
    before = package_digest("clip_negatives")
    monkeypatch.setattr(clip_negatives, "__path__", [*clip_negatives.__path__, str(tmp_path)])
    assert package_digest("clip_negatives") != before


@pytest.mark.parametrize("files", [("plain_plugin.py",), ("packed_plugin/__init__.py", "packed_plugin/inner/part.py")])
def test_source_changes_with_every_file_of_a_plugin(
    files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("def factory(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = Path(files[0]).parts[0].removesuffix(".py")
    module = importlib.import_module(name)
    item = registry.Registration("clusterer", "c", "c", "d", "1", module.factory, (), name)
    seen = {source_digest(item)}
    (tmp_path / "beside.py").write_text("")
    assert source_digest(item) in seen
    for file in files:
        (tmp_path / file).write_text("def factory(): return 1\n")
        seen.add(source_digest(item))
    assert len(seen) == 1 + len(files)
    assert None not in seen
    del sys.modules[name]


def test_rows_are_known_by_value_and_order() -> None:
    rows = ["a", "b", "c"]
    digests = {
        rows_digest(pa.chunked_array([values])) for values in (rows, rows[::-1], ["ab", "", "c"], ["a", "b"], ["a", None])
    }
    assert len(digests) == 5
    assert rows_digest(pa.chunked_array([["a"], ["b", "c"]])) in digests


def test_weights_are_known_by_content(tmp_path: Path) -> None:
    file, folder = tmp_path / "weights.pt", tmp_path / "model"
    folder.mkdir()
    file.write_bytes(b"1")
    (folder / "config.json").write_bytes(b"1")
    before = weights_digest(file), weights_digest(folder)
    assert weights_digest(file.rename(tmp_path / "moved.pt")) == before[0]
    (tmp_path / "moved.pt").write_bytes(b"2")
    (folder / "config.json").write_bytes(b"2")
    assert weights_digest(tmp_path / "moved.pt") != before[0]
    assert weights_digest(folder) != before[1]
    assert weights_digest("laion2b_s34b_b79k") == "laion2b_s34b_b79k"
    assert json.dumps(before)


def test_weights_in_linked_folders_count(tmp_path: Path) -> None:
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "part.bin").write_bytes(b"1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "text").symlink_to(tmp_path / "stored")
    (tmp_path / "model" / "itself").symlink_to(tmp_path / "model")
    before = weights_digest(tmp_path / "model")
    (tmp_path / "stored" / "part.bin").write_bytes(b"2")
    assert weights_digest(tmp_path / "model") != before


def test_files_in_options_are_recorded_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "rewrites.jsonl"
    file.write_text("{}")
    first = resolved("negative_sampler", f"redrawn_captions:file={file}")
    file.write_text("{ }")
    assert str(file) in first
    assert resolved("negative_sampler", f"redrawn_captions:file={file}") != first
