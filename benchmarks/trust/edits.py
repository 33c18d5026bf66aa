"""Hypothesis strategies of damaged files: each takes a valid file and changes bytes or fields."""

from __future__ import annotations

import bz2
import copy
import functools
import gzip
import io
import json
import lzma
import operator
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import reject
from hypothesis import strategies as st

pick = st.sampled_from

# Captions, names and values that readers have failed on, and other strange ones.
TEXTS: list[str] = json.loads(Path(__file__).with_name("texts.json").read_text())

texts = pick(TEXTS) | st.text(st.characters(), max_size=8)
numbers = pick((0, 1, -1, 2, 3, 12, 13, 99, 2**31, 2**62, -(2**63))) | st.integers(-(2**63), 2**63 - 1)
values = texts | numbers | st.floats() | st.booleans() | st.none() | pick((10**30, [], {}, [[]], [None], {"": None}))


@st.composite
def bytes_of(draw: st.DrawFn, data: bytes) -> bytes:
    """Return the data with up to 4 ranges overwritten, inserted, removed or repeated, at times cut off."""
    content = bytearray(data)
    for _ in range(draw(pick((1, 1, 1, 2, 4)))):
        place, other = (draw(st.integers(0, len(content))) for _ in range(2))
        repeated = bytes(content[other : other + (size := draw(pick((1, 2, 4, 8, 64))))])
        new = draw(st.binary(max_size=size) | pick((bytes(size), b"\xff" * size, repeated, b"")))
        content[place : place + draw(pick((len(new), len(new), 0, size)))] = new
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 19)) == 19 else content)


@st.composite
def text_of(draw: st.DrawFn, text: str) -> str:
    """Return the text with another one inserted, or in the place of a part."""
    start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    return str(text[:start] + draw(texts | st.just(text[start:end] * 3)) + text[draw(pick((start, end))) :])


def _places(value: Any) -> Iterator[tuple[Any, ...]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from ((key,), *((key, *place) for place in _places(item)))


@st.composite
def value_of(draw: st.DrawFn, value: Any, likely: st.SearchStrategy[Any] = values) -> Any:
    """Return a JSON value in which one value is replaced, removed, repeated, or has another key."""
    whole = [copy.deepcopy(value)]
    *path, key = draw(pick(list(_places(whole))))
    parent: Any = functools.reduce(operator.getitem, path, whole)
    old, kind = parent[key], draw(pick(("replace", "replace", "replace", "remove", "repeat")))
    if kind == "remove" and path:
        del parent[key]
    elif kind == "repeat" and isinstance(parent, dict):
        parent[draw(texts)] = parent.pop(key) if draw(st.booleans()) else old
    elif kind == "repeat":
        parent.append(old)
    else:
        near = text_of(old) if isinstance(old, str) else numbers.map(lambda n: old + n) if type(old) is int else values
        parent[key] = draw(near | likely | values)
    return whole[0]


@st.composite
def json_of(draw: st.DrawFn, data: bytes) -> bytes:
    """Return JSON with a changed value, at times nested too deep, with long numbers, as UTF-16 or with changed bytes."""
    text = json.dumps(draw(value_of(json.loads(data))))
    forms = [text.encode(), text.encode("utf-16"), text.replace("1", "1" * 5000, 1).encode()]
    forms += [text.replace(mark, "[" * depth, 1).encode() for mark in ("null", "{") for depth in (10, 100_000)]
    return bytes(draw(st.just(forms[0]) | bytes_of(forms[0]) | pick(forms)))


DTYPES = ("I64", "I32", "F32", "F64", "F16", "BF16", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "U64", "F4", "E8M0")
SHAPES = ([], [0], [1, 1], [10**9, 0], [0, 2**62], [0, 0], [2**32, 2**32, 0])


@st.composite
def tensors_of(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a safetensors file with other numbers, shapes, dtypes or metadata, or with changed bytes."""
    size = 8 + struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:size]), bytearray(data[size:])
    entry, kind = header[draw(pick(sorted(set(header) - {"__metadata__"})))], draw(st.integers(0, 7))
    start, end = entry["data_offsets"]
    if kind <= 1:
        place = start + 8 * draw(st.integers(0, max((end - start) // 8 - 1, 0)))
        floats = st.floats(width=32).map(lambda number: struct.pack("<ff", number, 1.0))
        body[place : place + 8] = draw(floats | numbers.map(lambda number: struct.pack("<q", number)))
    elif kind <= 3:
        n = (end - start) // draw(pick((1, 2, 4, 8)))
        entry["dtype"], entry["shape"] = draw(pick(DTYPES)), draw(pick(([n], [1, n], [n, 1], [2, n // 2], *SHAPES)))
        entry["data_offsets"] = draw(pick(([start, end], [start, start])))
    elif kind <= 5:
        header = draw(value_of(header, pick((*DTYPES, *SHAPES))))
    else:
        return bytes(draw(bytes_of(data)) if kind == 6 else draw(bytes_of(data[:size])) + body)
    text = json.dumps(header).encode()
    length = draw(pick((*[len(text)] * 9, 0, 1, 2**31, 2**40, 2**63, len(text) + 8)))
    return struct.pack("<Q", length) + text + bytes(body)


TYPES = (pa.int64(), pa.binary(), pa.large_string(), pa.bool_(), pa.list_(pa.string()), pa.float32(), pa.null())
TYPES += (pa.struct([("a", pa.int8())]), pa.timestamp("ns"), pa.dictionary(pa.int32(), pa.string()))
RAW_TEXTS = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok")  # most are not UTF-8


@st.composite
def table_of(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a parquet file with other columns, types, values or rows, or with changed bytes."""
    if (tail := draw(pick((0, 0, 0, 200, len(data))))) != 0:
        return bytes(data[: len(data) - tail] + draw(bytes_of(data[len(data) - tail :])))
    table = pq.read_table(pa.BufferReader(data))
    name, kind = draw(pick(table.column_names)), draw(st.integers(0, 6))
    try:
        if kind <= 1:
            table = pa.table(draw(value_of(table.to_pydict(), st.none())))
        elif kind <= 4:
            columns = pick(TYPES).map(table[name].cast) | pick(TYPES).map(lambda dtype: pa.nulls(len(table), dtype))
            columns |= pick(RAW_TEXTS).map(lambda text: pa.array([text] * len(table), pa.binary()).view(pa.string()))
            table = table.set_column(table.column_names.index(name), name, draw(columns))
        elif kind == 5:
            rows = [table.slice(1), table.slice(0, 0), pa.concat_tables([table, table]), table.append_column(name, table[name])]
            table = draw(pick(rows) | st.permutations(range(len(table))).map(table.take))
        else:
            table = table.replace_schema_metadata({"ARROW:schema": draw(st.text(max_size=8)), "pandas": "{"})
        packed = draw(pick(("none", "zstd", "snappy", "gzip", "lz4", "brotli")))
        pq.write_table(table, stream := io.BytesIO(), compression=packed, row_group_size=draw(st.integers(1, 12)))
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):  # no table holds that
        reject()
    return stream.getvalue()


def changed_files(folder: Path) -> dict[str, st.SearchStrategy[bytes]]:
    """Return strategies that change the files of a folder, by relative path with + for /."""
    changes = {".json": json_of, ".safetensors": tensors_of, ".parquet": table_of, ".pt": bytes_of}
    files = sorted(folder.rglob("*.*"))
    return {str(file.relative_to(folder)).replace("/", "+"): changes[file.suffix](file.read_bytes()) for file in files}


# Offset and width of the fields of a tar header.
FIELDS = ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))
NAMES = (b"../x.txt", b"/abs.png", b"..", b"__meta__", b"x.__key__", b"x.__url__", b".png", b"k.TXT", b"k.png.gz", b"k\xff.png")


def tar_of(tar: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of a tar with a changed header or changed bytes, at times compressed and cut."""
    plain = st.just(tar) | header_of(tar) | header_of(tar).flatmap(header_of) | bytes_of(tar)
    packed = st.builds(lambda pack, content: pack(content), pick((gzip.compress, bz2.compress, lzma.compress)), plain)
    return plain | plain | plain | packed | packed.flatmap(bytes_of) | st.builds(lambda a, n: a[:n], packed, st.integers(0, 40))


@st.composite
def header_of(draw: st.DrawFn, tar: bytes) -> bytes:
    """Return a tar with a field of a header changed and a correct checksum."""
    content = bytearray(tar)
    start = draw(pick([at for at in range(0, len(tar) - 511, 512) if tar[at + 257 : at + 262] == b"ustar"] or [0]))
    offset, width = draw(pick(FIELDS))
    likely = [b"7" * width, b"\xff" * width, b"\x80" + b"\xff" * width, b"\x80" + bytes(max(width - 3, 0)) + b"\x7f\xff"]
    likely += NAMES if offset == 0 else [bytes(width), b"/etc/passwd", b"-1 "]
    new = draw(pick([*likely, *(bytes([code]) * width for code in b"xgLKSDVN01237")]) | st.binary(max_size=width))
    content[start + offset : start + offset + width] = new[:width].ljust(width, b"\0")
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    return bytes(content)
