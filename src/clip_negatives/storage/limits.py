"""Size limits for untrusted input: without them, a small file could use up all memory or take for ever.

The defaults are far above real training data. Raise limits with ``CLIP_NEGATIVES_LIMITS=pixels=200000000,characters=2000000``.
"""

from __future__ import annotations

import functools
import os

from clip_negatives.errors import OptionError, UnknownNameError

VARIABLE = "CLIP_NEGATIVES_LIMITS"  # environment variable

DEFAULTS = {
    "pixels": 89_478_485,  # of an image; Pillow warns above this number
    "characters": 2**20,  # of a caption
    "member_bytes": 2**28,  # of an image, text or json in a tar
    "manifest_bytes": 2**25,  # of a manifest, which lists every file
    "json_bytes": 2**27,  # of other JSON files, such as sizes.json
    "header_bytes": 2**20,  # of a safetensors header or a tar header
}

MAX_LOST = 0.01  # default of the largest share of samples that `prepare` may lose in damaged data

# Limits that skip samples of tars: with other limits, the same tars give other samples.
OF_SAMPLES = ("pixels", "characters", "member_bytes", "header_bytes")


def limit(name: str) -> int:
    """Return a limit from the environment variable, else from `DEFAULTS`; OptionError if the variable is invalid."""
    return _limits(os.environ.get(VARIABLE, ""))[name]


@functools.lru_cache(maxsize=8)
def _limits(text: str) -> dict[str, int]:
    limits = dict(DEFAULTS)
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in DEFAULTS:
            raise OptionError(str(UnknownNameError.of(f"limit in {VARIABLE}", name, DEFAULTS)))
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value)):
            raise OptionError(f"Expected a whole number above 0 for {name} in {VARIABLE}, got {value!r}.")
        limits[name] = int(value)
    return limits
