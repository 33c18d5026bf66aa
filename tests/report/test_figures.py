"""Figures of the report on clusters, against naive loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image

from clip_negatives import ClustersFolder
from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.clustering.similarity import pair_quantiles
from clip_negatives.host.method import Method
from clip_negatives.meter.treatments import apply_method
from clip_negatives.report.album import SIDE, Album
from clip_negatives.report.charts import plain, plot
from clip_negatives.report.inspection.clusters import FARTHEST, NEAREST, cards, centroid_cosines
from clip_negatives.report.inspection.pairs import draw_pairs, false_pairs, generated, lowest_pairs, pair_weights
from clip_negatives.report.inspection.sensitivity import QUANTILES, gates, granularities
from clip_negatives.report.inspection.setting import Setting, thresholds_of
from clip_negatives.report.page import caption, count, decimal, percent, plural
from tests.conftest import make_clusters


def test_gates_count_what_loops_count() -> None:
    clusters = make_clusters(48, 6, 5)
    truth = torch.arange(clusters.n_samples) // 3
    results = gates(clusters, truth, seed=0)
    assert [gate.quantile for gate in results] == list(QUANTILES)
    for gate in results:
        image, text = ReliabilityGate(image_quantile=gate.quantile, text_quantile=gate.quantile).tables(clusters)
        a, c = clusters.image.labels.tolist(), clusters.text.labels.tolist()
        pairs = list(itertools.permutations(range(clusters.n_samples), 2))
        gone = [not (image[a[i], a[j]] and text[c[i], c[j]]) for i, j in pairs]
        false = [i // 3 == j // 3 for i, j in pairs]
        caught = sum(is_gone and is_false for is_gone, is_false in zip(gone, false, strict=True))
        assert gate.removed == pytest.approx(sum(gone) / len(pairs))
        assert gate.caught == pytest.approx(caught / sum(false), abs=0.01)  # estimated from random pairs
        assert gate.lost == pytest.approx((sum(gone) - caught) / (len(pairs) - sum(false)), abs=0.001)


def test_false_pairs_are_pairs_of_two_that_show_the_same() -> None:
    truth = torch.tensor([3, 1, 3, 0, 1, 3, 2])
    left, right = false_pairs(truth, seed=0)
    assert (left != right).all()
    assert (truth[left] == truth[right]).all()
    pairs, counts = torch.stack([left, right]).unique(dim=1, return_counts=True)
    assert pairs.shape[1] == 3 * 2 + 2
    torch.testing.assert_close(counts / len(left), torch.full((8,), 1 / 8), atol=0.01, rtol=0)
    assert len(false_pairs(torch.arange(5), seed=0)[0]) == 0


def test_thresholds_are_those_of_the_sampler_or_else_of_the_weighting(folder: ClustersFolder) -> None:
    image = folder.clusters.image_similarity, folder.clusters.image.sizes()
    thresholds = thresholds_of(folder, Setting(sampler="cluster_similarity:image_quantile=0.5,text_threshold=0.25"))
    assert (thresholds.image, thresholds.text) == (pair_quantiles(*image, [0.5])[0], 0.25)
    thresholds = thresholds_of(folder, Setting(sampler="in_batch", weighting="weighted_infonce:image_quantile=none"))
    assert thresholds.image is None
    assert "weighted_infonce" in thresholds.origin
    thresholds = thresholds_of(folder, Setting(sampler="in_batch", weighting="uniform"))
    assert thresholds.image == pair_quantiles(*image, [0.95])[0]
    assert "95th" in thresholds.origin


def test_pairs_are_of_one_batch_and_weighed_as_a_batch_is(folder: ClustersFolder) -> None:
    method = apply_method(folder, Method(), batch_size=16, seed=0)
    sampled = draw_pairs(method, seed=0)
    batches = {index: row for row, batch in enumerate(method.sampler) for index in batch}
    assert all(batches[i] == batches[j] for i, j in zip(sampled.images.tolist(), sampled.texts.tolist(), strict=True))
    assert (sampled.images != sampled.texts).all()
    assert float(sampled.weights.mean()) == pytest.approx(1.0)
    assert (sampled.weights > 0).all()
    lowest = lowest_pairs(folder, sampled, Setting(pairs=7), folder.clusters.groups)
    assert lowest.kind == "lowest"
    assert len({frozenset((pair.image, pair.text)) for pair in lowest.pairs}) == len(lowest.pairs) == 7
    assert max(pair.weight for pair in lowest.pairs) <= float(sampled.weights.quantile(0.25))
    for pair in generated(folder, method, sampled.scale, Setting(pairs=9), folder.clusters.groups).pairs:
        a, c = folder.clusters.image.labels, folder.clusters.text.labels
        assert a[pair.image] != a[pair.text]
        assert c[pair.image] != c[pair.text]
        assert pair.image_similarity == pytest.approx(float(folder.clusters.image_similarity[a[pair.image], a[pair.text]]))


def test_groups_of_a_weighting_remove_pairs_too(folder: ClustersFolder) -> None:
    terms = apply_method(folder, Method(weighting="id_mask"), batch_size=16, seed=0).terms
    groups, everyone = terms.groups, torch.arange(folder.clusters.n_samples)
    images, texts = torch.cartesian_prod(everyone, everyone).T
    assert torch.equal(pair_weights(terms, images, texts) == 0, groups[images] == groups[texts])


def test_other_numbers_of_clusters(folder: ClustersFolder) -> None:
    results, reason = granularities(folder, folder.clusters.groups, seed=0)
    assert [item.n_clusters for item in results] == [(2, 2), (3, 3), (6, 6), (12, 12)]
    assert reason == ""
    assert all(-1 <= score <= 1 for item in results for score in item.silhouette)
    same = [item.same_cluster[0] for item in results]
    assert same == sorted(same, reverse=True)


def test_cards_show_the_nearest_and_the_farthest(folder: ClustersFolder) -> None:
    near = centroid_cosines(folder.clusters.image, folder.clusters.image_features)
    for card in cards(folder.clusters.image, near, 6):
        assert len(card.nearest) + len(card.farthest) == min(card.size, NEAREST + FARTHEST)
        assert not set(card.nearest) & set(card.farthest)
        assert all(folder.clusters.image.labels[index] == card.number for index in (*card.nearest, *card.farthest))
        if card.farthest:
            assert min(near[list(card.nearest)]) >= max(near[list(card.farthest)])


def test_pictures_are_small_within_the_budget_and_once_each() -> None:
    images = [Image.new("RGB", (300, 200), colour) for colour in ("red", "red", "blue", "green")]
    album = Album(dict.fromkeys(range(4), "text"), lambda index, side: iter([images[0], images[1], None, images[3]]))
    assert len(album.symbols) == 2
    assert album[0].symbol == album[1].symbol != album[3].symbol
    assert album[2].symbol is None
    assert (album.missing, album.left_out) == (1, 0)
    room = len(next(iter(album.symbols.values())))
    tight = Album(dict.fromkeys(range(4), "text"), lambda index, side: iter(images), budget=room)
    assert (len(tight.symbols), tight.left_out) == (1, 2)
    assert SIDE == 64


def test_formats_of_numbers() -> None:
    assert (percent(0.1234), percent(None)) == ("12.3\xa0%", "–")
    assert (decimal(-0.5), decimal(1234.5, 0), decimal(None)) == ("−0.50", "1,234", "–")
    assert count(100000) == "100,000"
    assert (plural(1, "pair"), plural(2000, "pair"), plural(2, "query", "queries")) == ("1 pair", "2,000 pairs", "2 queries")
    assert caption("word " * 100)[-7:] == "d word…"


def test_long_texts_are_cut() -> None:
    assert len(Album({0: "word " * 500}, None)[0].text) <= 280


def test_names_in_plots_are_text() -> None:
    name = "<script>$x_1$ &"
    svg = plot(f'"{name}"', "Title", "Note.", lambda figure: figure.subplots().set_title(plain(name)), height=100).drawing
    assert "&lt;script&gt;$x_1$ &amp;" in svg
    assert "<script" not in svg
    assert 'aria-label="&quot;&lt;script&gt;' in svg
