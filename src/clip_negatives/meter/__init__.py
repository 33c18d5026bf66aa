"""The false-negative meter: how many of a batch's incorrect pairs are suspect, and what a method would do about it."""

from __future__ import annotations

from clip_negatives.artifacts import ClustersFolder
from clip_negatives.errors import InputError
from clip_negatives.meter.reading import Reading, Suspects, Treatment
from clip_negatives.meter.suspects import counted, sampled
from clip_negatives.meter.treatments import treatments as treatments_of
from clip_negatives.meter.truth import truth_of

__all__ = ["Reading", "Suspects", "Treatment", "meter", "truth_of"]


def meter(
    folder: ClustersFolder,
    batch_size: int,
    *,
    sampler: str = "cluster_similarity",
    weighting: str = "weighted_infonce",
    threshold: float = 0.9,
    seed: int = 0,
) -> Reading:
    """Read the meter.

    Args:
        folder: the clusters.
        batch_size: batch of all processes together.
        sampler: the method's sampler, ``name`` or ``name:key=value,...``.
        weighting: the method's weighting.
        threshold: frozen cosine over which two clusters, or two samples, count as similar, -1 .. 1.
        seed: seed of the batches and of the sampled pairs.

    Raises:
        InputError: the batch is not within 2 .. N, the threshold not within -1 .. 1, or the sampler refuses.
        PluginError: a name or an option is unknown.
    """
    n = folder.clusters.n_samples
    if not 2 <= batch_size <= n:
        raise InputError(f"Expected a batch size within 2 .. {n}, the number of samples, got {batch_size}.")
    if not -1.0 <= threshold <= 1.0:
        raise InputError(f"Expected a threshold within -1 .. 1, got {threshold}.")
    shares = [*counted(folder, threshold), *sampled(folder, threshold, seed)]
    suspects = tuple(Suspects(kind, share, share * (batch_size - 1), exact) for kind, share, exact in shares)
    methods = dict.fromkeys([("in_batch", "uniform"), (sampler, weighting)])
    treatments = tuple(item for method in methods for item in treatments_of(folder, batch_size, *method, seed))
    return Reading(n, batch_size, suspects, treatments)
