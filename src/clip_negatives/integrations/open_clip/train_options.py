"""What a training run is told of its negatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clip_negatives import registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Say which negatives a training run has.

    Attributes:
        clusters: clusters folder of the training data; None prepares one, cached by the data and the encoders.
        sampler: ``name`` or ``name:key=value,...`` of the negative sampler.
        weighting: the same of the loss weighting.
        backend: backend of the loss: "auto" or a name that `clip_negatives.functional.weighted_info_nce` knows.
        temperature: hold the temperature at this, 0.01 .. 1, instead of learning it; None learns it, as open_clip does.
        refresh_every: re-cluster with the model being trained before every so many epochs; None never does.
        image_encoder: encoder of the images, for clusters that are prepared here.
        text_encoder: encoder of the texts, likewise.
        clusterer: clusterer of the images and texts, for clusters that are prepared here.
        text_clusterer: another clusterer for the texts.
        on_batch: called with the sample indices (int64, shape (B,)) of every batch as it is handed out.
    """

    clusters: Path | None = None
    sampler: str = "cluster_similarity"
    weighting: str = "weighted_infonce"
    backend: str = "auto"
    temperature: float | None = None
    refresh_every: int | None = None
    image_encoder: str = "pixels"
    text_encoder: str = "tfidf"
    clusterer: str = "kmeans"
    text_clusterer: str | None = None
    on_batch: Callable[[Tensor], None] | None = None

    @property
    def requires_clusters(self) -> bool:
        """Return whether the sampler or the weighting needs clusters.

        Raises:
            PluginError: a name or an option is unknown, or a value has the wrong type.
        """
        found = registry.default_registry()
        sampler, _ = found.resolve("negative_sampler", self.sampler)
        weighting, _ = found.resolve("loss_weighting", self.weighting)
        return sampler.requires_clusters or weighting.requires_clusters
