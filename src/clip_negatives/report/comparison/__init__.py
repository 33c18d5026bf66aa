"""The report on a comparison."""


def write_comparison() -> None:
    """Write it."""
