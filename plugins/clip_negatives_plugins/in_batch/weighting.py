"""The weighting `uniform`: every incorrect pair counts the same."""

from __future__ import annotations

from clip_negatives.interfaces import Clusters, LossTerms


class Uniform:
    """Weight 1 for every incorrect pair: the loss is `open_clip.ClipLoss`. Sign: none."""

    requires_clusters = False

    def __call__(self, clusters: Clusters | None) -> LossTerms:
        """Return neutral terms."""
        return LossTerms()
