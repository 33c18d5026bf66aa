"""Change valid inputs: bytes without regard to what they say, JSON and texts by their structure."""

from __future__ import annotations

import json
from random import Random
from typing import Any

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
