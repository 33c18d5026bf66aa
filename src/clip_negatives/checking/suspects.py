"""Suspect pairs: samples that may show the same, for the user to decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import Tensor

from clip_negatives.checking.truth import GroundTruth
from clip_negatives.dataset.decided import Decisions, Samples
from clip_negatives.heads.agreement import MIN_SUSPECT_AGREEMENT
from clip_negatives.storage.clusters_folder import ClustersFolder

MAX_COMPARED = 200_000  # similar pairs that are looked at
NEARLY_IDENTICAL = 0.999  # cosine of two images


@dataclass(frozen=True, slots=True)
class Suspect:
    """A suspect pair.

    Attributes:
        left: number of a sample.
        right: number of the other sample.
        image: cosine of the centred image features.
        text: cosine of the centred text features.
        agreement: ``([image]+ [text]+) ** 4``, 0 .. 1.
        lift: number of pairs with these two neighbour ranks, divided by the number expected by chance.
        why: why the pair is suspect.
    """

    left: int
    right: int
    image: float
    text: float
    agreement: float
    lift: float
    why: str


def suspects_of(truth: GroundTruth, decisions: Decisions, limit: int) -> list[Suspect]:
    """Return the most suspect pairs, by falling ``duplicate_probability * agreement``, then agreement.

    See `clip_negatives.heads.SimilarPairs`. In small data, few pairs have a
    `duplicate_probability` above 0, because the lift is at most N.

    Pairs of one group and decided pairs are left out. For n mutually similar samples, only n - 1 pairs are listed: enough to
    connect them.
    """
    if truth.neighbour_sample is None:
        return []
    rows, pairs = truth.neighbour_sample.rows, truth.neighbour_sample.pairs
    pairs = pairs.take(pairs.agreement > MIN_SUSPECT_AGREEMENT)
    pairs = pairs.take(pairs.agreement.argsort(descending=True, stable=True))
    pairs = pairs.take((pairs.duplicate_probability * pairs.agreement).argsort(descending=True, stable=True)[:MAX_COMPARED])
    listed: list[Suspect] = []
    connected = _Connected(truth.groups, decisions.same)
    columns = rows[pairs.left], rows[pairs.right], pairs.image, pairs.text, pairs.agreement, pairs.lift
    for left, right, image, text, agreement, lift in zip(*(column.tolist() for column in columns), strict=True):
        if len(listed) == limit:
            break
        if not connected.join(left, right):
            continue
        why = _reason(bool(truth.texts[left] == truth.texts[right]), image)
        listed.append(Suspect(left, right, image, text, agreement, lift, why))
    return listed


def samples_of(folder: ClustersFolder) -> Samples:
    """Return the identity of the samples of a clusters folder."""
    columns = {name: _Column(folder.samples[name]) for name in folder.samples.column_names}
    return Samples(columns["key"], columns["text"], columns.get("image"))


def rows_of(suspects: Sequence[Suspect], samples: Samples) -> list[dict[str, str]]:
    """Return the suspect pairs as rows of the file for the user."""
    return [
        {
            "decision": "",
            "why": suspect.why,
            "image_similarity": f"{suspect.image:.3f}",
            "text_similarity": f"{suspect.text:.3f}",
            "agreement": f"{suspect.agreement:.3f}",
            "lift": f"{suspect.lift:.0f}",
            **samples.row(suspect.left, "a"),
            **samples.row(suspect.right, "b"),
        }
        for suspect in suspects
    ]


class _Column(Sequence[str]):
    """Values of a column of strings, read one by one: a list of all of them may not fit into memory."""

    def __init__(self, values: pa.ChunkedArray) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: Any) -> Any:
        return self._values[row].as_py()


class _Connected:
    """Samples that are connected by groups, by decisions and by listed pairs."""

    def __init__(self, groups: Tensor | None, same: Iterable[tuple[int, int]]) -> None:
        self._groups = groups
        self._parent: dict[int, int] = {}
        for left, right in same:
            self.join(left, right)

    def join(self, left: int, right: int) -> bool:
        """Connect two samples; return False if they already were."""
        first, second = self._root(left), self._root(right)
        if first == second:
            return False
        self._parent[first] = second
        return True

    def _root(self, sample: int) -> int:
        node = sample if self._groups is None else int(self._groups[sample])
        while (above := self._parent.get(node, node)) != node:
            self._parent[node] = self._parent.get(above, above)
            node = above
        return node


def _reason(is_same_text: bool, image: float) -> str:
    if is_same_text:
        return "same text and similar image"
    if image > NEARLY_IDENTICAL:
        return "nearly identical image and similar text"
    return "similar image and text"
