"""What is logged, against loops by hand."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from clip_negatives.host import registry
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.losses.kernels import log_weights
from clip_negatives.step import BatchSamples
from clip_negatives.training import figures
from clip_negatives.training.figures import batch_figures, cluster_figures
from tests.conftest import make_clusters


@pytest.fixture
def known() -> Clusters:
    return dataclasses.replace(make_clusters(60), texts=torch.arange(60) // 2, groups=torch.arange(60) // 4)


INDEX = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:20]
SAMPLES = BatchSamples(ids=INDEX)


@pytest.mark.parametrize("weighting", ["weighted_infonce", "random_reduction:share=0.3", "uniform"])
@pytest.mark.parametrize("truth", ["groups", "texts"])
def test_figures_of_a_batch_equal_a_loop(known, weighting, truth):
    clusters = known if truth == "groups" else dataclasses.replace(known, groups=None)
    terms = registry.create("loss_weighting", weighting)(clusters)
    b = torch.zeros(20, 20) if terms.n_samples is None else log_weights.block(terms.take(INDEX), terms.take(INDEX))
    pairs = [(i, j) for i in range(20) for j in range(20) if i != j]
    kept = [b[i, j].exp().item() for i, j in pairs if b[i, j] > -torch.inf]
    code = getattr(known, truth)[INDEX]
    expected = {
        "clip_negatives/removed_share": 1 - len(kept) / len(pairs),
        "clip_negatives/mean_weight": sum(kept) / len(kept),
        "clip_negatives/false_negatives_per_anchor": sum(bool(code[i] == code[j]) for i, j in pairs) / 20,
    }
    assert batch_figures(SAMPLES, clusters, terms) == pytest.approx(expected)


def test_what_is_not_known_is_not_logged(known):
    nothing = dataclasses.replace(known, groups=None, texts=None)
    decides_later = registry.create("loss_weighting", "sogclr")(known)
    assert batch_figures(SAMPLES, nothing, decides_later) == {}
    assert set(batch_figures(SAMPLES, known, decides_later)) == {"clip_negatives/false_negatives_per_anchor"}
    assert "clip_negatives/false_negatives_per_anchor" not in batch_figures(SAMPLES, nothing, LossTerms())


def test_large_batches_are_looked_at_in_part(known, monkeypatch):
    whole = batch_figures(SAMPLES, known, LossTerms())
    monkeypatch.setattr(figures, "PAIRS", 100)
    part = batch_figures(SAMPLES, known, LossTerms())
    assert part.keys() == whole.keys()
    code = known.groups[INDEX]
    false = [sum(bool(code[i] == code[j]) for j in range(20) if i != j) for i in range(0, 20, 4)]
    assert part["clip_negatives/false_negatives_per_anchor"] == sum(false) / 5


def test_sizes_of_clusters(known):
    found = cluster_figures(known)
    sizes = known.text.labels.bincount().tolist()
    assert found["clip_negatives/text_cluster_size_min"] == min(sizes)
    assert found["clip_negatives/text_cluster_size_mean"] == sum(sizes) / len(sizes)
    assert found["clip_negatives/text_cluster_size_max"] == max(sizes)
    assert len(found) == 6


@pytest.mark.usefixtures("one_thread")
def test_the_figures_of_a_large_batch_take_a_moment():
    clusters = make_clusters(20_000, k_image=200, k_text=200)
    clusters = dataclasses.replace(clusters, texts=torch.arange(20_000) // 3)
    terms = registry.create("loss_weighting", "weighted_infonce")(clusters)
    samples = BatchSamples(ids=torch.randperm(20_000)[:8192])
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        batch_figures(samples, clusters, terms)
        best = min(best, time.process_time() - start)
    assert best < 0.5
