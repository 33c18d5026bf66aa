"""The false-negative meter: the share of suspect pairs (possible false negatives), and how a method treats them."""

from __future__ import annotations

from clip_negatives.errors import InputError
from clip_negatives.host.method import NO_SAMPLER, NO_WEIGHTING, Method
from clip_negatives.meter.reading import Reading, Suspects, Treatment
from clip_negatives.meter.suspects import suspects_of, truth_of
from clip_negatives.meter.treatments import treatments as treatments_of
from clip_negatives.storage.clusters_folder import ClustersFolder

__all__ = ["Reading", "Suspects", "Treatment", "meter", "truth_of"]


def meter(
    folder: ClustersFolder,
    batch_size: int,
    *,
    sampler: str = Method.sampler,
    weighting: str = Method.weighting,
    threshold: float = 0.9,
    seed: int = 0,
) -> Reading:
    """Measure suspect pairs in uniform batches, and false negatives with in-batch negatives and with a method.

    Args:
        folder: the clusters.
        batch_size: samples of a batch over all processes, 2 .. N.
        sampler: sampler of the method, ``name`` or ``name:key=value,...``.
        weighting: weighting of the method, in the same form.
        threshold: two clusters, or two samples, are suspect above this frozen cosine, -1 .. 1.
        seed: seed of the batches and of the sampled pairs.

    Raises:
        InputError: the batch size or the threshold is out of range, or the sampler rejects the clusters.
        PluginError: a name or an option is unknown.
    """
    n = folder.clusters.n_samples
    if not 2 <= batch_size <= n:
        raise InputError(f"Expected a batch size within 2 .. {n}, the number of samples, got {batch_size}.")
    if not -1.0 <= threshold <= 1.0:
        raise InputError(f"Expected a threshold within -1 .. 1, got {threshold}.")
    suspects = tuple(suspects_of(folder, batch_size, threshold, seed))
    methods = dict.fromkeys([Method(NO_SAMPLER, NO_WEIGHTING), Method(sampler, weighting)])
    treatments = tuple(item for method in methods for item in treatments_of(folder, batch_size, method, seed))
    return Reading(n, batch_size, suspects, treatments)
