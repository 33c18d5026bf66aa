"""How numbers and texts are written in a report."""

from __future__ import annotations

CAPTION = 280
"""Letters of a text that are shown."""


def percent(share: float | None, digits: int = 1) -> str:
    r"""Write a share, 0 .. 1, in percent; None as a dash.

    Examples:
        >>> percent(0.1234), percent(None)
        ('12.3\xa0%', '–')
    """
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def decimal(value: float | None, digits: int = 2) -> str:
    """Write a number; None as a dash.

    Examples:
        >>> decimal(-0.5), decimal(1234.5, 0)
        ('−0.50', '1,234')
    """
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def count(value: float) -> str:
    """Write a whole number with commas.

    Examples:
        >>> count(100000)
        '100,000'
    """
    return f"{value:,.0f}"


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Write how many there are.

    Examples:
        >>> plural(1, "pair"), plural(2000, "pair")
        ('1 pair', '2,000 pairs')
    """
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def caption(text: str) -> str:
    """Shorten a long text; the page says so.

    Examples:
        >>> caption("word " * 100)[-7:]
        'd word…'
    """
    return text if len(text) <= CAPTION else f"{text[: CAPTION - 1].rstrip()}…"
