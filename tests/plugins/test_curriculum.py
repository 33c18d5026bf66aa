from __future__ import annotations

import pytest
import torch

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters, SamplingContext
from clip_negatives.sampling import PlannedSampler
from clip_negatives_plugins.curriculum.sampler import Curriculum

BATCH = 20


def sampler(clusters: Clusters, **options: object) -> Curriculum:
    return Curriculum(SamplingContext.of(clusters, BATCH, seed=3), **options)


def met(plan: torch.Tensor, labels: torch.Tensor) -> float:
    """Return how many other samples of its cluster a sample meets in its step."""
    rows = labels[plan.long()]
    return float((rows[:, :, None] == rows[:, None, :]).double().mean()) * plan.shape[1] - 1


@pytest.mark.parametrize("by", ["image", "text"])
def test_similar_samples_meet_more_often_in_later_epochs(clusters: Clusters, by: str) -> None:
    batches = sampler(clusters, run=5, share=1.0, epochs=3, by=by)
    labels = getattr(clusters, by).labels
    counts = [met(batches.planned(epoch), labels) for epoch in range(4)]
    assert counts[0] < counts[1] < counts[2]
    assert counts[3] == pytest.approx(counts[2], rel=0.2)
    assert [batches.share_in(epoch) for epoch in range(4)] == [0.0, 0.5, 1.0, 1.0]


def test_runs_are_of_consecutive_samples_sorted_by_cluster(clusters: Clusters) -> None:
    """With all samples in runs of the size of a step, nearly all steps are of one cluster or of two."""
    plan = sampler(clusters, run=BATCH, share=1.0, epochs=1).planned(0)
    assert sorted(plan.flatten().tolist()) == sorted(set(plan.flatten().tolist()))
    n_clusters = [len(row.unique()) for row in clusters.image.labels[plan.long()]]
    assert sum(n_clusters) <= len(plan) + clusters.image.n_clusters


def test_epoch_0_is_a_uniform_shuffle(clusters: Clusters) -> None:
    batches = sampler(clusters)
    assert batches.share_in(0) == 0
    shuffled = met(batches.planned(0), clusters.image.labels)
    random = met(torch.randperm(clusters.n_samples)[: len(batches) * BATCH].view(-1, BATCH), clusters.image.labels)
    assert shuffled == pytest.approx(random, rel=0.5)


def test_sparse_clusters_come_into_runs_first(clusters: Clusters) -> None:
    """The samples in runs are those of the sparsest clusters: no cluster of a sample alone is sparser."""
    batches = sampler(clusters, run=5, share=0.5, epochs=1, first="sparse")
    labels, features = clusters.image.labels, clusters.image_features
    cosines = [float(features[row] @ clusters.image.centroids[label]) for row, label in enumerate(labels.tolist())]
    naive = [
        sum(c for c, at in zip(cosines, labels.tolist(), strict=True) if at == k) / int((labels == k).sum()) for k in range(12)
    ]
    torch.testing.assert_close(batches.density, torch.tensor(naive))
    plan = batches.planned(0)
    assert sorted(plan.flatten().tolist()) == list(range(len(labels)))
    half = batches.density[labels].sort().values[: len(labels) // 2].max()
    own = (labels[plan.long()][:, :-1] == labels[plan.long()][:, 1:]).float()
    is_sparse = batches.density[labels[plan.long()]][:, :-1] <= half
    assert own[is_sparse].mean() > 2 * own[~is_sparse].mean()


@pytest.mark.parametrize("options", [{"run": 1}, {"share": 1.5}, {"epochs": 0}, {"by": "both"}])
def test_options_out_of_range_are_errors(clusters: Clusters, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        sampler(clusters, **options)


def test_a_plan_may_take_the_epoch() -> None:
    context = SamplingContext(n_samples=6, batch_size=2)
    seen = []

    def plan(generator: torch.Generator, epoch: int) -> torch.Tensor:
        seen.append(epoch)
        return torch.randperm(6, generator=generator).view(3, 2)

    batches = PlannedSampler(context, plan)
    batches.set_epoch(4)
    list(batches)
    batches.incorrect_pairs(1, torch.Generator())
    assert seen == [4, 4]
