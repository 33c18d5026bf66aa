"""What a report on clusters is asked for, and the thresholds that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_negatives import registry
from clip_negatives.artifacts import ClustersFolder
from clip_negatives.errors import InputError
from clip_negatives.similarity import pair_quantile

QUANTILE = 0.95
"""Share of all pairs under the threshold that is drawn where neither sampler nor weighting has one."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Hold the options of a report.

    Attributes:
        sampler: composes batches and draws pairs, ``name`` or ``name:key=value,...``.
        weighting: weighs the pairs.
        batch_size: batch of all processes together.
        pairs: pairs shown of each kind.
        clusters_shown: clusters shown of each modality.
        seed: of everything that is drawn.
    """

    sampler: str = "cluster_similarity"
    weighting: str = "weighted_infonce"
    batch_size: int = 256
    pairs: int = 60
    clusters_shown: int = 8
    seed: int = 0

    def check(self, n_samples: int) -> None:
        """Refuse values that do not fit the data.

        Raises:
            InputError: one is out of its range.
        """
        if not 2 <= self.batch_size <= n_samples:
            raise InputError(f"Expected a batch size within 2 .. {n_samples}, the number of samples, got {self.batch_size}.")
        for name, value in (("pairs", self.pairs), ("clusters-shown", self.clusters_shown)):
            if value < 1:
                raise InputError(f"Expected --{name} of at least 1, got {value}.")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Hold the cosines at which two clusters are too similar to exchange texts.

    Attributes:
        image: of image clusters; None where clusters only have to differ.
        text: of text clusters.
        origin: where they are from.
    """

    image: float | None
    text: float | None
    origin: str

    @classmethod
    def of(cls, folder: ClustersFolder, setting: Setting) -> Thresholds:
        """Return those of the sampler or else of the weighting, by their options, or else those of `QUANTILE`."""
        clusters = folder.clusters
        found = _options("negative_sampler", setting.sampler), _options("loss_weighting", setting.weighting)
        owner, given = next(((name, options) for name, options in found if "image_quantile" in options), ("", {}))
        cosines: list[float | None] = []
        modalities = ("image", clusters.image, clusters.image_similarity), ("text", clusters.text, clusters.text_similarity)
        for modality, clustering, similarity in modalities:
            cosine = given.get(f"{modality}_threshold")
            quantile = given.get(f"{modality}_quantile", None if owner else QUANTILE)
            if cosine is None and quantile is not None:
                cosine = pair_quantile(similarity, clustering.sizes(), quantile)
            cosines.append(cosine)
        return cls(cosines[0], cosines[1], f"those of {owner}" if owner else f"under which {QUANTILE:.0%} of all pairs lie")


def _options(kind: registry.Kind, spec: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a plugin and all its options, given ones and defaults."""
    item, given = registry.default_registry().resolve(kind, spec)
    return item.name, {option.name: option.default for option in item.options} | given
