"""Samples of a stream are known by shard and key."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from clip_negatives.batches.streams import CaptionStage, StreamLoader, TextStage
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.storage.digests import text_digest
from clip_negatives.storage.shards import ClusteredShards, ShardRows


def test_shards_and_keys_of_a_stream() -> None:
    """Keys repeat over shards: a sample is known by its shard, at any address, and its key."""
    shards = ClusteredShards(Path("clusters"), 1, {}, {"s/0.tar": "0.tar", "s/1.tar": "1.tar"})
    texts = ["first", "second", "third"]
    rows = ShardRows(shards, {"0.tar": {"a": 0, "b": 1}, "1.tar": {"a": 2}}, pa.chunked_array([texts]))
    batches = [
        ("0.tar 1.tar 0.tar", "b a a", "second third first"),
        ("0.tar", "x", "first"),
        ("other.tar", "a", "first"),
        ("1.tar", "a", "first"),
    ]
    loader = [
        (
            "image",
            "text",
            [f"/copy/{name}" for name in names.split()],
            keys.split(),
            [text_digest(text.encode()) for text in said.split()],
        )
        for names, keys, said in batches
    ]
    batch, samples = next(iter(StreamLoader(loader, rows)))
    assert batch == ("image", "text")
    assert samples.ids.tolist() == [1, 2, 0]
    with pytest.raises(DataError, match=r"'x' of /copy/0\.tar was not clustered"):
        list(StreamLoader(loader[1:], rows))
    with pytest.raises(ArtifactError, match=r"^The shard /copy/other\.tar was not clustered"):
        list(StreamLoader(loader[2:], rows))
    with pytest.raises(ArtifactError, match=r"^The text of the sample 'a' of /copy/1\.tar is not the one that was clustered"):
        list(StreamLoader(loader[3:], rows))


def test_samples_that_were_not_clustered_are_left_out_of_a_stream() -> None:
    """Of equal keys in one shard the first is used, each time that the shard is read; other shards have keys of their own."""
    shards = ClusteredShards(Path("clusters"), 1, {}, {"s/0.tar": "0.tar", "s/1.tar": "1.tar"})
    rows = ShardRows(shards, {"0.tar": {"a": 0}, "1.tar": {"a": 1, "b": 2}}, pa.chunked_array([["first", "second", "third"]]))
    broken = pa.table({"key": ["a", "b", "a"], "reason": ["why"] * 3, "shard": ["s/0.tar", "s/0.tar", "s/0.tar"]})
    stage = TextStage(shards, rows.left_out(broken))
    read = [("0.tar", "a", 0), ("0.tar", "a", 1), ("0.tar", "b", 2), ("0.tar", "a", 3), ("1.tar", "a", 4), ("1.tar", "b", 5)]
    samples = [{"__url__": f"/copy/{tar}", "__key__": key, "txt": b"", "number": number} for tar, key, number in read]
    assert [sample["number"] for sample in stage([*samples, *samples])] == [0, 4, 5, 0, 4, 5]


def test_clustered_samples_without_a_text_stop() -> None:
    """They were clustered with another caption; the last sample of a torn tar may have lost its text."""
    shards = ClusteredShards(Path("clusters"), 1, {}, {"s/0.tar": "0.tar", "s/1.tar": "1.tar"})
    first, last = {"__url__": "0.tar", "__key__": "a", "txt": b"shoe"}, {"__url__": "0.tar", "__key__": "b"}
    stage = TextStage(shards, {})
    torn = [first, last, {**last, "__url__": "1.tar"}, first, last, first]
    assert [sample["__key__"] for sample in stage(torn)] == ["a", "b", "b", "a", "b", "a"]
    with pytest.raises(ArtifactError, match=r"^The text of the sample 'c' of 0\.tar is not the one that was clustered"):
        list(stage([first, last, {**last, "__key__": "c"}]))


def test_captions_of_a_stream() -> None:
    samples = [{"__key__": "a", "cls": b"7\n"}, {"__key__": "b", "txt": b"shoe", "json": b'{"cls": "hat"}'}, {"txt": b"x"}]
    assert list(CaptionStage("cls")(samples)) == [
        {"__key__": "a", "txt": b"7"},
        {"__key__": "b", "txt": b"hat", "json": b'{"cls": "hat"}'},
        {},
    ]


def test_stream_without_any_caption_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several passes; one caption is enough to go on."""
    monkeypatch.setattr("clip_negatives.batches.streams.UNLABELLED_LIMIT", 5)
    samples = [{"__key__": key, "jpg": b"", "json": b'{"title": "hat"}'} for key in "abc"]
    stage = CaptionStage("cls")
    assert len(list(stage(samples))) == 3
    with pytest.raises(DataError, match=r"of the first 5 samples .* 'cls', only \.jpg, \.json \(fields: title\)\. Name the"):
        list(stage(samples))
    stage = CaptionStage("cls")
    assert len(list(stage([{"cls": b"7"}, *samples, *samples]))) == 7
