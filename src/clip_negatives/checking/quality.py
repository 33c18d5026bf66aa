"""Quality of the features for finding similar samples: recall and precision of clusters, or overlap of neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clip_negatives.checking.rates import joint_ids, same_share
from clip_negatives.checking.truth import GroundTruth
from clip_negatives.encoders.installed import WEIGHTLESS, alternatives
from clip_negatives.storage.clusters_folder import ClustersFolder

NEAREST = 10  # neighbours whose agreement is measured
MIN_PAIRS = 50  # known pairs that are needed to measure recall and precision
MIN_RECALL, MIN_LIFT = 0.5, 5.0  # of good clusters; the lift is precision divided by that of random pairs
MIN_OVERLAP = 3.0  # of good features: overlap of neighbours, divided by that of random data


@dataclass(frozen=True, slots=True)
class ClusterMatch:
    """Recall and precision of "same cluster" for the known pairs.

    Attributes:
        modality: "image" or "text".
        truth: "group" or "text".
        recall: share of the known pairs that are in the same cluster, 0 .. 1.
        precision: share of the pairs of the same cluster that are known, 0 .. 1.
        chance: precision of random pairs.
        cluster_share: share of all pairs that are in the same cluster.
    """

    modality: str
    truth: str
    recall: float
    precision: float
    chance: float
    cluster_share: float

    @property
    def is_good(self) -> bool:
        """Return whether recall and precision are high enough."""
        return self.recall >= MIN_RECALL and self.precision >= MIN_LIFT * self.chance

    def sentence(self) -> str:
        """Return recall and precision in words."""
        recall, precision, chance = (100 * value for value in (self.recall, self.precision, self.chance))
        return (
            f"{self.modality.capitalize()} clusters: {recall:.0f} % of the pairs with the same {self.truth} are in one cluster "
            f"(recall). Of the pairs in one cluster, {precision:.1f} % have the same {self.truth} (precision; of random pairs: "
            f"{chance:.2f} %)."
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of the features and clusters.

    Attributes:
        matches: recall and precision of the clusters; empty with fewer than `MIN_PAIRS` known pairs.
        overlap: share of the 10 nearest neighbours of an image that are among the 10 nearest of its text; None without
            features.
        chance: this share in random data.
        encoders: encoder of each modality.
        better: for each encoder without weights, the options that use a better one.
    """

    matches: tuple[ClusterMatch, ...]
    overlap: float | None
    chance: float
    encoders: Mapping[str, str]
    better: tuple[str, ...]

    @property
    def is_good(self) -> bool | None:
        """Return whether the features are good enough; None if it cannot be measured."""
        if self.matches:
            return all(match.is_good for match in self.matches)
        return None if self.overlap is None else self.overlap >= MIN_OVERLAP * self.chance

    def sentences(self) -> list[str]:
        """Return the quality in words, the verdict first."""
        verdicts = {True: "Yes, good enough", False: "No, they are weak", None: "Unknown: the features were not kept"}
        verdict = "They are usable, but better ones exist" if self.better and self.is_good else verdicts[self.is_good]
        facts = [match.sentence() for match in self.matches]
        if self.overlap is not None:
            facts.append(
                f"Of the {NEAREST} nearest neighbours of an image, {100 * self.overlap:.1f} % are among the {NEAREST} "
                f"nearest of its text (in random data: {100 * self.chance:.2f} %)."
            )
        return [f"{verdict}.", *facts, *self.better]

    def to_dict(self) -> dict[str, Any]:
        """Return the quality as JSON data."""
        return {**asdict(self), "is_good": self.is_good}


def quality_of(folder: ClustersFolder, truth: GroundTruth) -> Quality:
    """Return the quality of the features and clusters of a clusters folder."""
    overlap, chance = None, 0.0
    if truth.neighbour_sample is not None:
        n = len(truth.neighbour_sample.rows)
        k = min(NEAREST, n - 1)
        overlap, chance = truth.neighbour_sample.neighbourhoods.overlap(k), k / (n - 1)
    encoders = {side: str(folder.manifest.get(f"{side}_encoder", "")) for side in ("image", "text")}
    better = [_advice(side, name) for side, name in encoders.items() if name.partition(":")[0] in WEIGHTLESS]
    return Quality(tuple(_matches(folder, truth)), overlap, chance, encoders, tuple(better))


def _matches(folder: ClustersFolder, truth: GroundTruth) -> list[ClusterMatch]:
    """Return recall and precision of both modalities for groups, or, without groups, of the image clusters for texts."""
    n = len(truth.texts)
    name, ids, sides = "text", truth.texts, ["image"]
    if truth.has_groups and truth.groups is not None:
        name, ids, sides = "group", truth.groups, ["image", "text"]
    known = same_share(ids)
    if known * n * (n - 1) / 2 < MIN_PAIRS:
        return []
    matches = []
    for side in sides:
        labels = getattr(folder.clusters, side).labels
        together, both = same_share(labels), same_share(joint_ids(labels, ids))
        matches.append(ClusterMatch(side, name, both / known, both / together if together else 0.0, known, together))
    return matches


def _advice(side: str, encoder: str) -> str:
    """Return a sentence about an encoder without weights, and the option that uses a better one."""
    spec, is_installed = alternatives(side)
    name = encoder.partition(":")[0]
    install = "" if is_installed else " (first run: pip install 'clip-negatives[encoders]')"
    compared_property = "colours and coarse shapes" if side == "image" else "the spelling"
    return f"The {side} encoder {name} compares {compared_property} only. Better: --{side}-encoder {spec}{install}."
