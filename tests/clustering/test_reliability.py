from __future__ import annotations

import pytest
import torch

from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters


def test_reliable_are_different_clusters_below_the_threshold(clusters: Clusters) -> None:
    different = ~torch.eye(clusters.image.n_clusters, dtype=torch.bool)
    assert torch.equal(ReliabilityGate().image_table(clusters), different)
    below = ReliabilityGate(image_threshold=0.2).image_table(clusters)
    assert torch.equal(below, different & (clusters.image_similarity < 0.2))
    assert torch.equal(ReliabilityGate(image_quantile=1.0).image_table(clusters), different)
    assert not ReliabilityGate(image_threshold=-1.0).image_table(clusters).any()


def test_a_threshold_overrides_a_quantile(clusters: Clusters) -> None:
    both, alone = ReliabilityGate(text_threshold=0.2, text_quantile=0.95), ReliabilityGate(text_threshold=0.2)
    assert torch.equal(both.text_table(clusters), alone.text_table(clusters))


@pytest.mark.parametrize(
    ("option", "value", "limits"),
    [("image_threshold", 1.5, "at least -1 and at most 1"), ("text_quantile", -0.1, "at least 0 and at most 1")],
)
def test_values_out_of_range(option: str, value: float, limits: str) -> None:
    with pytest.raises(InputError, match=f"{option} must be {limits}, got {value}"):
        ReliabilityGate(**{option: value})
