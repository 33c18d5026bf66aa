"""How large what comes from outside may be, so that a small file cannot ask for all memory or all time.

They lie far over what training data hold. Who has larger raises them by the environment variable ``CLIP_NEGATIVES_LIMITS``,
written ``name=value,name=value``, such as ``CLIP_NEGATIVES_LIMITS=pixels=200000000``.
"""

from __future__ import annotations

import functools
import os

from clip_negatives.errors import OptionError, UnknownNameError

VARIABLE = "CLIP_NEGATIVES_LIMITS"
"""Environment variable: limits that differ from the defaults."""

DEFAULTS = {
    "pixels": 89_478_485,
    "letters": 2**20,
    "member_bytes": 2**28,
    "manifest_bytes": 2**20,
    "json_bytes": 2**27,
    "header_bytes": 2**20,
}
"""Of an image, over which Pillow warns; of a text; of an image, text or json in a tar; of a manifest; of other
JSON, such as a ``sizes.json`` or a result of ``compare``; of what a safetensors file or a tar says before its contents."""


def limit(name: str) -> int:
    """Return a limit of `DEFAULTS`, or what the environment says in its place.

    Raises:
        OptionError: the environment names no limit or gives no whole number over 0.

    Examples:
        >>> limit("letters")
        1048576
    """
    return _given(os.environ.get(VARIABLE, ""))[name]


@functools.lru_cache(maxsize=8)
def _given(text: str) -> dict[str, int]:
    """Return all limits."""
    found = dict(DEFAULTS)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in DEFAULTS:
            raise OptionError(str(UnknownNameError.of(f"limit in {VARIABLE}", name, DEFAULTS)))
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value)):
            raise OptionError(f"Expected a whole number over 0 for {name} in {VARIABLE}, got {value!r}.")
        found[name] = int(value)
    return found
