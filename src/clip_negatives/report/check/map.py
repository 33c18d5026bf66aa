"""A map of the data: the two principal components of the features of random samples."""

from __future__ import annotations

from typing import Any

import torch

from clip_negatives.heads.agreement import centred
from clip_negatives.printing import printable
from clip_negatives.storage.clusters_folder import ClustersFolder

MAX_POINTS = 3000
TEXT = 80  # characters of a text that are shown
SEED = 0


def map_of(folder: ClustersFolder) -> dict[str, Any] | None:
    """Return the points of the map as JSON data: texts, and for images and texts x, y, cluster; None without features."""
    clusters = folder.clusters
    if clusters.image_features is None or clusters.text_features is None or clusters.n_samples < 3:
        return None
    rows = torch.arange(clusters.n_samples)
    if len(rows) > MAX_POINTS:
        rows = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))[:MAX_POINTS].sort().values
    texts = folder.samples["text"].take(rows.numpy()).to_pylist()
    sides = {}
    for side in ("image", "text"):
        places, explained = _components(getattr(clusters, f"{side}_features")[rows])
        sides[side] = {"points": places, "clusters": getattr(clusters, side).labels[rows].tolist(), "explained": explained}
    return {"rows": rows.tolist(), "texts": [printable(text[:TEXT]) for text in texts], "sides": sides}


def _components(features: torch.Tensor) -> tuple[list[list[float]], float]:
    """Return two principal components of each sample, and the share of the variance that they explain."""
    from sklearn.decomposition import PCA

    values = centred(features).numpy()
    n_components = min(2, *values.shape)
    model = PCA(n_components, random_state=SEED, svd_solver="randomized" if min(values.shape) > 10 else "auto").fit(values)
    places = model.transform(values)
    pairs = [[round(float(value), 4) for value in (*row, 0.0)[:2]] for row in places]
    return pairs, float(sum(share for share in model.explained_variance_ratio_ if share == share))
