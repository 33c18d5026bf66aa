"""Change valid inputs: bytes without regard to what they say, and JSON, tables, tensors, tars and texts by their structure."""

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

TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\n",
        "\r\n",
        "\t",
        '"',
        '""',
        "'",
        ",",
        ";",
        "nan",
        "NA",
        "None",
        "-1",
        "1e999",
        "0x10",
        "../..",
        "/etc/passwd",
    ),
    *(
        "</script><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "{{ 7*7 }}",
        "{% raw %}",
        "&lt;b&gt;",
        "]]>",
        "--><svg/onload=1>",
    ),
    *(
        "\u202e",
        "\u200b",
        "\ufeff",
        "\ufffd",
        "\U0001f9ff",
        "e\u0301" * 40,
        "\x1b[2J\x1b]0;x\a",
        "\x7f",
        "\x85",
        "$x$",
        "%s%n",
        "\\",
        "pipe:false",
    ),
    *(
        "a" * 4000,
        "shoe " * 900,
        "\u4e00" * 700,
        "<start_of_text>",
        "<end_of_text>",
        "&amp;" * 300,
        "true",
        "1_000",
        "=1+1",
        "k=v",
        "a:b=c,d=e",
    ),
)
"""Texts that readers have stumbled over."""

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        12,
        13,
        2**31,
        2**63,
        2**64,
        -(2**63),
        10**30,
        0.5,
        -0.0,
        1e308,
        float("inf"),
        float("nan"),
    ),
    *([], {}, [[]], [None], {"": None}, {"bytes": 0}, "\ud800", *TEXTS),
)
"""Values that JSON may have in the place of another."""


def change_bytes(data: bytes, rng: Random) -> bytes:
    """Return bytes with some set, inserted, deleted, repeated, moved or cut off."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place = rng.randrange(len(found) + 1)
        other = rng.randrange(len(found) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(8):
            case 0 | 1 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 2 if place < len(found):
                found[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 3:
                found[place:place] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
            case 4:
                del found[place : place + size]
            case 5:
                found[place:place] = found[other : other + size]
            case 6:
                found[place : place + size] = rng.choice(
                    (bytes(size), b"\xff" * size, (2 ** rng.randrange(63)).to_bytes(8, "little"))
                )
            case 7 if rng.random() < 0.2:
                del found[place:]
    return bytes(found)


def change_json(value: Any, rng: Random) -> Any:
    """Return a JSON value with one of its places changed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(10):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, rng.choice(TEXTS): value[key]}
            case 2:
                return {(rng.choice(TEXTS) if name == key else name): item for name, item in value.items()}
            case _:
                return {**value, key: change_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], change_json(value[place], rng), *value[place + 1 :]]
    if isinstance(value, str) and rng.random() < 0.3:
        return change_text(value, rng)
    if isinstance(value, int) and rng.random() < 0.4:
        return value + rng.choice((-1, 1, 2**31, -value - 1))
    return rng.choice(VALUES)


def json_bytes(value: Any, rng: Random) -> bytes:
    """Write JSON, at times as UTF-16, nested without end, or with bytes changed."""
    text = json.dumps(value, ensure_ascii=True)
    match rng.randrange(40):
        case 0:
            return text.encode("utf-16")
        case 1:
            depth = rng.choice((10, 1000, 100_000))
            return text.replace(rng.choice(("null", "{", "[", "1")), "[" * depth, 1).encode()
        case 2:
            return text.replace("1", "1" * rng.choice((20, 5000)), 1).encode()
        case 3 | 4 | 5:
            return change_bytes(text.encode(), rng)
    return text.encode()


def change_text(text: str, rng: Random) -> str:
    """Return a text with another one in it."""
    place, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    return (
        text[:place]
        + rng.choice((*TEXTS, chr(rng.randrange(0xD7FF)), text[place:end] * 3))
        + text[end if rng.random() < 0.5 else place :]
    )


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
    place, column = table.column_names.index(name), table[name]
    match rng.randrange(11):
        case 0 | 1:
            values: list[Any] = column.to_pylist()
            values[rng.randrange(len(values))] = (
                None if rng.random() < 0.3 else rng.choice(TEXTS) if pa.types.is_string(column.type) else rng.randrange(-3, 12)
            )
            table = table.set_column(place, name, pa.array(values, column.type))
        case 2:
            kind = rng.choice(
                (
                    pa.int64(),
                    pa.binary(),
                    pa.large_string(),
                    pa.bool_(),
                    pa.list_(pa.string()),
                    pa.float32(),
                    pa.null(),
                    pa.struct([("a", pa.int8())]),
                    pa.timestamp("ns"),
                )
            )
            table = table.set_column(place, name, pa.nulls(len(table), kind))
        case 3:
            table = table.set_column(
                place, name, column.dictionary_encode() if pa.types.is_string(column.type) else column.cast(pa.int64())
            )
        case 4:
            table = table.drop_columns([name])
        case 5:
            table = table.rename_columns([rng.choice(TEXTS) or "x" if one == name else one for one in table.column_names])
        case 6:
            table = rng.choice((table.slice(1), table.slice(0, 0), pa.concat_tables([table, table])))
        case 7:  # bytes that are no UTF-8
            bad = pa.array([rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok")) for _ in range(len(table))], pa.binary())
            table = table.set_column(place, name, pa.Array.from_buffers(pa.string(), len(bad), bad.buffers()))
        case 8:
            table = table.append_column(rng.choice(table.column_names), column)
        case 9:
            table = table.replace_schema_metadata(
                {rng.choice(TEXTS): rng.choice(TEXTS), "ARROW:schema": rng.choice(TEXTS), "pandas": "{"}
            )
        case _:
            return _shuffled(table, rng)
    stream = io.BytesIO()
    pq.write_table(
        table,
        stream,
        compression=rng.choice(("none", "zstd", "snappy", "gzip", "lz4", "brotli")),
        use_dictionary=rng.random() < 0.5,
    )
    return stream.getvalue()


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
