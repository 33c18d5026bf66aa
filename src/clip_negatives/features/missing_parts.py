"""Parts that are missing: tars that do not exist or cannot be reached are left out, up to a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clip_negatives.dataset import Part
from clip_negatives.dataset.missing import MissingLimit, digest_of_missing
from clip_negatives.distributed.processes import Processes
from clip_negatives.errors import MissingShardError
from clip_negatives.features.encoding import encode_images
from clip_negatives.features.losses import PartReport
from clip_negatives.features.store import KEYS, VECTORS, PartStore


class MissingParts:
    """The missing parts of a data set, as far as this process knows them.

    Attributes:
        digests: digest of each part in order; for a missing part, of its name.
        faults: what is wrong with each missing part, by digest.
    """

    def __init__(self, limit: MissingLimit, parts: Sequence[Part], processes: Processes) -> None:
        """Find the missing parts; MissingShardError if they are too many."""
        self.limit, self.n_parts = limit, len(parts)
        entries: list[tuple[str, str]] = processes.divided(_digest, parts)
        self.digests = [digest for digest, _ in entries]
        self.faults = {digest: fault for digest, fault in entries if fault}
        processes.together(self._check)

    def encode(self, part: Part, digest: str, encoder: Any, store: PartStore, *options: Any) -> None:
        """Encode a part, or store that it is missing; see `encode_images`. MissingShardError if too many are missing."""
        if digest not in self.faults:
            try:
                encode_images(part, digest, encoder, store, *options)
                return
            except MissingShardError as error:
                self.faults[digest] = str(error)
            self._check()
        with store.adding(digest) as (folder, record):
            for name in (VECTORS, KEYS):
                (folder / name).touch()
            record |= {"count": 0, "broken": [], "lost": [], "torn": None, "notes": {}, "sources": []}
            record["missing"] = (part.name, self.faults[digest])

    def check(self, parts: Sequence[PartReport]) -> None:
        """Raise MissingShardError if too many parts are missing, on all processes together."""
        self.limit.check([part.missing[1] for part in parts if part.missing is not None], self.n_parts)

    def _check(self) -> None:
        self.limit.check(list(self.faults.values()), self.n_parts)


def _digest(part: Part) -> tuple[str, str]:
    """Return the digest of a part, and what is wrong if it is missing."""
    try:
        return part.digest(), ""
    except MissingShardError as error:
        return digest_of_missing(part.name), str(error)
