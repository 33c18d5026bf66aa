"""Source files are written and read; a damaged table is an error."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_negatives.storage.source_files import SourceFile, evenly_spread, read_sources, write_sources

SOURCES = [SourceFile("s3://bucket/0.tar", 9, "ab"), SourceFile("pipe:cat 1.tar", None, "")]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    for sources in (SOURCES, SOURCES[1:], []):
        write_sources(sources, tmp_path / "sources.parquet")
        assert read_sources(tmp_path / "sources.parquet") == sources


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"file": ["a"], "sha256": ["b"]}, "it has no column bytes"),
        ({"file": ["a"], "bytes": ["9"], "sha256": ["b"]}, "column bytes has type string, not int64"),
        ({"file": ["a"], "bytes": pa.array([9], pa.int32()), "sha256": ["b"]}, "column bytes has type int32, not int64"),
        (
            {"file": [None], "bytes": [9], "sha256": ["b"]},
            "column file has type null",
        ),
        ({"file": pa.array(["a", None]), "bytes": [9, 9], "sha256": ["b", "b"]}, "column file has missing values"),
    ],
)
def test_invalid_table(table: dict[str, object], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "sources.parquet")
    with pytest.raises(ValueError, match=message):
        read_sources(tmp_path / "sources.parquet")


def test_numbers_are_evenly_spread() -> None:
    assert list(evenly_spread(0, 4)) == []
    for n in range(1, 40):
        numbers = evenly_spread(n, 4)
        assert numbers[0] == 0
        assert len(numbers) == min(n, -(-n // -(-n // 4))) <= 4
