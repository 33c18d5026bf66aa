"""Every incorrect pair counts the same."""

from __future__ import annotations

from clip_negatives.interfaces import Clusters, LossTerms


class Uniform:
    """Weigh every incorrect pair 1: the loss is `open_clip.ClipLoss`, whatever the clusters are."""

    requires_clusters = False

    def __call__(self, clusters: Clusters | None) -> LossTerms:
        """Return neutral terms."""
        return LossTerms()
