"""The verdict on a data set, which `check`, `meter` and `inspect` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_negatives.checking.quality import Quality, quality_of
from clip_negatives.checking.rates import Rates, rates_of
from clip_negatives.checking.truth import GroundTruth, truth_about
from clip_negatives.storage.clusters_folder import ClustersFolder

PROBLEM, FEATURES = "Are there false negatives?", "Are the features good enough?"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Frequency of false negatives, and quality of the features that find them.

    Attributes:
        rates: frequency of false negatives.
        quality: quality of the features.
    """

    rates: Rates
    quality: Quality

    def answers(self) -> dict[str, list[str]]:
        """Return sentences by question."""
        problem = [self.rates.sentence()]
        if self.rates.all.is_estimate and (self.quality.better or not self.quality.is_good):
            problem.append("The estimate depends on the features: weak features can miss many near-duplicates.")
        return {PROBLEM: problem, FEATURES: self.quality.sentences()}

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON data."""
        return {"answers": self.answers(), "rates": self.rates.to_dict(), "quality": self.quality.to_dict()}


def verdict_of(folder: ClustersFolder, truth: GroundTruth | None = None) -> Verdict:
    """Return the verdict on a clusters folder.

    Args:
        folder: the clusters.
        truth: the ground truth about them; None computes it.
    """
    truth = truth or truth_about(folder)
    return Verdict(rates_of(truth), quality_of(folder, truth))
