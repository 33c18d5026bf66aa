"""Text for terminals and logs: what could drive a terminal or forge a line is escaped, other text stays as it is."""

from __future__ import annotations

import logging
import warnings

import pytest

from clip_negatives.printing import log, printable, warn

ORDINARY = ("schön", "雪の花　二", "👩‍🔬", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "مرحبا بالعالم", "שלום", "می‌خواهم", "e\u0301", "a\u00a0b", "C:\\new")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("first", "last"),
    [
        *((0x00, 0x1F), (0x7F, 0x9F)),  # C0 and C1
        *((0x200E, 0x200F), (0x202A, 0x202E), (0x2066, 0x2069), (0x061C, 0x061C)),  # text direction
        *((0x2028, 0x2029), (0xD800, 0xD800), (0xDC80, 0xDCFF)),  # lines, half of a pair, undecodable bytes of a path
        *((0x200B, 0x200B), (0x2060, 0x2060), (0xFEFF, 0xFEFF), (0x00AD, 0x00AD)),  # invisible
    ],
)
def test_characters_that_hide_or_move_text_are_escaped(first: int, last: int) -> None:
    for code in range(first, last + 1):
        shown = printable(f"a{chr(code)}b")
        assert shown.isascii()
        assert shown.isprintable()
        assert shown.startswith("a\\")
        assert eval(f"'{shown}'") == f"a{chr(code)}b"


def test_warnings_are_escaped_and_name_the_line_of_the_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("a\x1b[2J\nb", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["a\\x1b[2J\\nb"]
    assert caught[0].filename == __file__


def test_log_records_are_escaped_whatever_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    log("100 % of a\nERROR | forged \u202e")
    log("told", logging.INFO)
    assert [record.getMessage() for record in caplog.records] == ["clip-negatives: 100 % of a\\nERROR | forged \\u202e"]
    assert caplog.records[0].pathname == __file__
