"""Options of a training run: its method, its clusters and how to make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clip_negatives.advice import argument
from clip_negatives.errors import InputError
from clip_negatives.host.method import Method, check_temperature
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.storage.manifest import missing_shards

if TYPE_CHECKING:
    from clip_negatives.step import BatchSamples


@dataclass(frozen=True)
class TrainOptions(Method):
    """A method, and how a training run uses it.

    Attributes:
        clusters: clusters folder of the training data; None prepares one and caches it.
        recipe: encoders and clusterers of the clusters that the run prepares; re-clustering uses the clusterers too.
        backend: backend of the loss: "auto" or a name that `clip_negatives.losses.functional.weighted_info_nce` knows.
        refresh_every: epochs between two clusterings with the model being trained; None never re-clusters.
        teacher: checkpoint of the model of the training, whose features a weighting uses (`Step.teacher`); None has no teacher.
        ema: the teacher is the moving average of the model that is trained, with this share of the old average, 0 .. 1.
        resume_anyway: resume a run that had other data, clusters or settings, with a warning instead of an error.
        on_batch: called with the samples of every batch just before the loader yields the batch.
    """

    clusters: Path | None = None
    recipe: Recipe = field(default_factory=Recipe)
    backend: str = "auto"
    refresh_every: int | None = None
    teacher: str | None = None
    ema: float | None = None
    resume_anyway: bool = False
    on_batch: Callable[[BatchSamples], None] | None = None

    @property
    def uses_clusters(self) -> bool:
        """Return whether the run uses clusters: the method needs them, or a folder is given."""
        return self.requires_clusters or self.clusters is not None

    @property
    def has_teacher(self) -> bool:
        """Return whether a second model encodes the batches."""
        return self.teacher is not None or self.ema is not None

    @property
    def known_missing(self) -> frozenset[str]:
        """Return the tars that were missing when the clusters were made."""
        return frozenset() if self.clusters is None else missing_shards(self.clusters)

    def check(self) -> None:
        """Check ranges and names of plugins; all other checks need open_clip's arguments."""
        if self.refresh_every is not None and self.refresh_every < 1:
            raise InputError(f"{argument('refresh_every')} must be at least 1 epoch, got {self.refresh_every}.")
        if self.temperature is not None:
            check_temperature(self.temperature)
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"{argument('ema')} must be at least 0 and below 1, got {self.ema}.")
        if self.ema is not None and self.teacher is not None:
            raise InputError(f"{argument('teacher')} and {argument('ema')} both name the teacher. Leave one out.")
        _ = self.plugins
        self.check_fixed_temperature(f"Set {argument('temperature')} to a number, such as 0.1")
