"""Options of a report on clusters, and its thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from clip_negatives.advice import argument
from clip_negatives.clustering.similarity import pair_quantiles
from clip_negatives.errors import InputError
from clip_negatives.host import registry
from clip_negatives.host.method import Method
from clip_negatives.meter.suspects import modalities
from clip_negatives.storage.clusters_folder import ClustersFolder

QUANTILE = 0.95  # of pair similarity: the threshold if neither sampler nor weighting has one


@dataclass(frozen=True, slots=True)
class Setting:
    """Options of a report.

    Attributes:
        sampler: sampler of batches and pairs, ``name`` or ``name:key=value,...``.
        weighting: weighting of the pairs, ``name`` or ``name:key=value,...``.
        batch_size: samples per step, all processes together.
        pairs: number of pairs of each kind to show.
        clusters_shown: number of image clusters, and of text clusters, to show.
        seed: seed of all random draws.
    """

    sampler: str = Method.sampler
    weighting: str = Method.weighting
    batch_size: int = 256
    pairs: int = 60
    clusters_shown: int = 8
    seed: int = 0

    def check(self, n_samples: int) -> None:
        """Check that the options fit the data; raises InputError."""
        if not 2 <= self.batch_size <= n_samples:
            name = argument("batch_size")
            raise InputError(f"{name} must be within 2 .. {n_samples}, the number of samples, got {self.batch_size}.")
        for field in ("pairs", "clusters_shown"):
            if (value := getattr(self, field)) < 1:
                raise InputError(f"{argument(field)} must be at least 1, got {value}.")


class Thresholds(NamedTuple):
    """Lowest cosines at which two clusters are too similar to exchange texts; None: any two clusters can exchange texts."""

    image: float | None
    text: float | None
    origin: str  # who set the thresholds, for the report


def thresholds_of(folder: ClustersFolder, setting: Setting) -> Thresholds:
    """Return the thresholds of the sampler or, if it has none, of the weighting; by default, the `QUANTILE` of the pairs."""
    specs = _options("negative_sampler", setting.sampler), _options("loss_weighting", setting.weighting)
    owner, options = next((spec for spec in specs if "image_quantile" in spec[1]), ("", {}))
    cosines: list[float | None] = []
    for name, clustering, similarity, _ in modalities(folder.clusters):
        cosine = options.get(f"{name}_threshold")
        quantile = options.get(f"{name}_quantile", None if owner else QUANTILE)
        if cosine is None and quantile is not None:
            cosine = pair_quantiles(similarity, clustering.sizes(), [quantile])[0]
        cosines.append(cosine)
    origin = f"set by {owner}" if owner else f"the {QUANTILE * 100:g}th percentile of all pairs"
    return Thresholds(cosines[0], cosines[1], origin)


def _options(kind: registry.Kind, spec: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a plugin and all its options with their values."""
    item, options = registry.default_registry().resolve(kind, spec)
    return item.name, {option.name: option.default for option in item.options} | options
