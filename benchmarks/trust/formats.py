"""Change tensors, tables and tars by their structure."""

from __future__ import annotations

import functools
import io
import json
import struct
import tarfile
from collections.abc import Sequence
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from mutations import TEXTS, change_bytes, change_json, json_bytes

TYPES = (
    *(pa.int64(), pa.binary(), pa.large_string(), pa.bool_(), pa.list_(pa.string()), pa.float32(), pa.null()),
    *(pa.struct([("a", pa.int8())]), pa.timestamp("ns")),
)
"""What a column of strings or numbers may be in its place."""


def change_tensors(data: bytes, rng: Random) -> bytes:
    """Return a safetensors file with its header, or the numbers in it, changed."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    name = rng.choice([name for name in header if name != "__metadata__"])
    match rng.randrange(8):
        case 0 | 1:  # a number that is none, out of range, or negative
            for _ in range(rng.choice((1, 1, 4))):
                start, end = header[name]["data_offsets"]
                place = start + rng.randrange(max((end - start) // 8, 1)) * 8
                body[place : place + 8] = rng.choice(
                    (
                        struct.pack("<q", rng.choice((-1, 0, 1, 3, 4, 99, 2**62, -(2**63)))),
                        struct.pack("<ff", rng.choice((float("nan"), float("inf"), 0.0, 3e38)), 1.0),
                    )
                )
        case 2:  # other shapes and types of the same bytes
            header[name]["dtype"] = rng.choice(
                ("I64", "I32", "F32", "F64", "F16", "BF16", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "U64", "F4", "E8M0")
            )
            wide = {"I64": 8, "F64": 8, "C64": 8, "U64": 8, "F16": 2, "BF16": 2}.get(
                header[name]["dtype"], 1 if header[name]["dtype"][0] in "UB" or header[name]["dtype"].startswith("F8") else 4
            )
            start, end = header[name]["data_offsets"]
            n = (end - start) // wide
            header[name]["shape"] = rng.choice(([n], [1, n], [n, 1], [], [n, 1, 1], [2, n // 2]))
        case 3:  # as many as there is room for in no bytes at all
            header[name]["shape"] = rng.choice(([0], [10**9, 0], [0, 2**62], [0, 0], [2**32, 2**32, 0]))
            header[name]["data_offsets"] = [header[name]["data_offsets"][0]] * 2
        case 4 | 5:
            header = change_json(header, rng)
        case _:
            return change_bytes(data[: 8 + size], rng) + bytes(body) if rng.random() < 0.5 else change_bytes(data, rng)
    text = json.dumps(header).encode()
    length = len(text) if rng.random() < 0.95 else rng.choice((0, 1, 2**31, 2**40, 2**63, len(text) + 8))
    return struct.pack("<Q", length) + text + bytes(body)


def change_table(data: bytes, rng: Random) -> bytes:
    """Return a parquet file with other columns, types, values or rows, or with bytes changed."""
    if rng.random() < 0.45:
        return change_bytes(data, rng) if rng.random() < 0.5 else data[:-200] + change_bytes(data[-200:], rng)
    table = _read(data)
    name = rng.choice(table.column_names)
    kind = rng.randrange(11)
    if kind == 10:
        return _shuffled(table, rng)
    table = _with_column(table, name, kind, rng) if kind in (0, 1, 2, 3, 7) else _with_layout(table, name, kind, rng)
    stream = io.BytesIO()
    packed = rng.choice(("none", "zstd", "snappy", "gzip", "lz4", "brotli"))
    pq.write_table(table, stream, compression=packed, use_dictionary=rng.random() < 0.5)
    return stream.getvalue()


def _with_column(table: pa.Table, name: str, kind: int, rng: Random) -> pa.Table:
    """Return a table in which one column holds something else."""
    column, text = table[name], pa.types.is_string(table[name].type)
    if kind in (0, 1):
        values: list[Any] = column.to_pylist()
        value = None if rng.random() < 0.3 else rng.choice(TEXTS) if text else rng.randrange(-3, 12)
        values[rng.randrange(len(values))] = value
        column = pa.array(values, column.type)
    elif kind == 2:
        column = pa.nulls(len(table), rng.choice(TYPES))
    elif kind == 3:
        column = column.dictionary_encode() if text else column.cast(pa.int64())
    else:  # bytes that are no UTF-8
        bad = pa.array([rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok")) for _ in range(len(table))], pa.binary())
        column = pa.Array.from_buffers(pa.string(), len(bad), bad.buffers())
    return table.set_column(table.column_names.index(name), name, column)


def _with_layout(table: pa.Table, name: str, kind: int, rng: Random) -> pa.Table:
    """Return a table of other columns, rows or metadata."""
    if kind == 4:
        return table.drop_columns([name])
    if kind == 5:
        return table.rename_columns([rng.choice(TEXTS) or "x" if one == name else one for one in table.column_names])
    if kind == 6:
        return rng.choice((table.slice(1), table.slice(0, 0), pa.concat_tables([table, table])))
    if kind == 8:
        return table.append_column(rng.choice(table.column_names), table[name])
    said = {rng.choice(TEXTS): rng.choice(TEXTS), "ARROW:schema": rng.choice(TEXTS), "pandas": "{"}
    return table.replace_schema_metadata(said)


@functools.lru_cache(maxsize=8)
def _read(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data))


def _shuffled(table: pa.Table, rng: Random) -> bytes:
    """Write the rows in another order and in small groups."""
    order = list(range(len(table)))
    rng.shuffle(order)
    stream = io.BytesIO()
    pq.write_table(
        table.take(order),
        stream,
        row_group_size=rng.randrange(1, 5),
        version=rng.choice(("1.0", "2.6")),
        data_page_version=rng.choice(("1.0", "2.0")),
    )
    return stream.getvalue()


def change_tar(members: Sequence[tuple[str, bytes]], rng: Random) -> bytes:
    """Write a tar with a member, a header or some bytes changed; at times compressed."""
    some = list(members)
    place = rng.randrange(len(some))
    name, data = some[place]
    match rng.randrange(8):
        case 0:
            some[place] = (
                rng.choice(
                    (
                        "../x.txt",
                        "/abs.png",
                        "a/../b.jpg",
                        "..",
                        "__meta__",
                        "x.__key__",
                        "x.__url__",
                        ".png",
                        "k.TXT",
                        "k.png.gz",
                        name + "\udcff",
                        *TEXTS[:9],
                    )
                ),
                data,
            )
        case 1:
            some[place] = (name, json_bytes(change_json({"item": "a", "more": [1]}, rng), rng))
        case 2:
            some[place] = (name, change_bytes(data, rng))
        case 3:
            some.insert(place, some[rng.randrange(len(some))])
        case 4:
            some[place] = (name, rng.choice(TEXTS).encode())
        case _:
            pass
    written = _written(some, rng, place)
    match rng.randrange(10):
        case 0 | 1:
            return change_bytes(written, rng)
        case 2 | 3:
            return _change_header(written, rng)
        case 4:
            import bz2
            import gzip
            import lzma

            packed = rng.choice(
                (lambda one: gzip.compress(one, 1), lambda one: bz2.compress(one, 1), lambda one: lzma.compress(one, preset=0))
            )(written)
            if rng.random() < 0.2:
                return packed[: rng.randrange(40)]  # within its header
            return change_bytes(packed, rng) if rng.random() < 0.7 else packed
    return written


def _written(members: Sequence[tuple[str, bytes]], rng: Random, special: int) -> bytes:
    stream = io.BytesIO()
    kind = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=stream, mode="w", format=kind, errors="surrogateescape") as tar:
        for place, (name, data) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if place == special and rng.random() < 0.3:
                info.type = rng.choice(
                    (
                        tarfile.SYMTYPE,
                        tarfile.LNKTYPE,
                        tarfile.CHRTYPE,
                        tarfile.FIFOTYPE,
                        tarfile.DIRTYPE,
                        tarfile.CONTTYPE,
                        tarfile.GNUTYPE_SPARSE,
                        b"x",
                        b"g",
                        b"L",
                        b"K",
                        b"Z",
                    )
                )
                info.linkname = rng.choice(("/etc/passwd", "../..", name))
            if place == special and rng.random() < 0.2 and kind == tarfile.PAX_FORMAT:
                info.pax_headers = {
                    rng.choice(
                        ("size", "path", "mtime", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "hdrcharset", "x")
                    ): rng.choice(("", "-1", "9" * 30, "BINARY", "1,2,3", "\0", "1e9", "x" * 2000))
                }
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError, OSError):  # what no tar of this format can say
                continue
    return stream.getvalue()


def _change_header(data: bytes, rng: Random) -> bytes:
    """Change a field of one header and make its checksum right again."""
    found = bytearray(data)
    starts = [start for start in range(0, len(found) - 511, 512) if found[start + 257 : start + 262] == b"ustar"] or [0]
    start = rng.choice(starts)
    field = rng.choice(
        (
            (0, 100),
            (100, 108),
            (108, 116),
            (124, 136),
            (124, 136),
            (136, 148),
            (156, 157),
            (156, 157),
            (157, 257),
            (257, 265),
            (345, 500),
        )
    )
    wide = field[1] - field[0]
    new = rng.choice(
        (
            b"\0" * wide,
            b"7" * wide,
            b"\x80" + b"\xff" * (wide - 1),
            b"\xff" * wide,
            b"\x80" + bytes(max(wide - 3, 0)) + b"\x7f\xff",
            b"-1".ljust(wide, b" "),
            b"xgLKSDVN01237"[rng.randrange(13) :][:1] * wide,
            rng.randbytes(wide),
        )
    )
    found[start + field[0] : start + field[1]] = new[:wide].ljust(wide, b"\0")
    found[start + 148 : start + 156] = b" " * 8
    found[start + 148 : start + 156] = b"%06o\0 " % sum(found[start : start + 512])
    return bytes(found)
