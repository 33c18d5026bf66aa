"""Random access to memory-mapped tables."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_negatives.errors import ArtifactError
from clip_negatives.storage import safe_reading
from clip_negatives.storage.arrow_table import map_table, take, write_mapped


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
def test_take_is_take(sizes: list[int], data: st.DataObject) -> None:
    values = [str(value) for value in range(sum(sizes))]
    ends = np.cumsum([0, *sizes])
    column = pa.chunked_array([values[start:stop] for start, stop in itertools.pairwise(ends)], pa.string())
    rows = np.array(data.draw(st.lists(st.integers(0, max(0, len(values) - 1)), max_size=12 if values else 0)), dtype=np.int64)
    assert take(column, rows).to_pylist() == [values[row] for row in rows]


def test_table_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_reading, "BATCH_ROWS", 3)
    table = pa.table({"key": [str(row) for row in range(10)], "other": range(10), "text": [f"text {row}" for row in range(10)]})
    pq.write_table(table, tmp_path / "table.parquet")
    before = pa.total_allocated_bytes()
    write_mapped(tmp_path / "table.parquet", ("text", "key", "image"), tmp_path / "table.arrow")
    table_read = map_table(tmp_path / "table.arrow")
    assert pa.total_allocated_bytes() - before < 1000  # not copied into memory
    assert table_read.equals(table.select(["key", "text"]))
    assert table_read["key"].num_chunks == 4


def test_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(b"no table")
    with pytest.raises(ArtifactError, match=r"The table .* is damaged: .*prepare again"):
        write_mapped(tmp_path / "table.parquet", ("key",), tmp_path / "table.arrow")
    assert not (tmp_path / "table.arrow").exists()
