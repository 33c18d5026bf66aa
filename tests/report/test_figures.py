"""What the report on clusters computes, against loops by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image

from clip_negatives import ClustersFolder
from clip_negatives.report.album import SIDE, Album
from clip_negatives.report.charts.drawing import draw, plain
from clip_negatives.report.inspection.clusters import FARTHEST, NEAREST, cards, closeness
from clip_negatives.report.inspection.pairs import doubtful, drawn
from clip_negatives.report.inspection.sampled import Method, draw_pairs, false_pairs
from clip_negatives.report.inspection.sensitivity import QUANTILES, gates, granularities
from clip_negatives.report.inspection.setting import Setting, Thresholds
from clip_negatives.similarity import pair_quantile, reliable_tables

from ..conftest import make_clusters


def test_gates_count_what_loops_count() -> None:
    clusters = make_clusters(48, 6, 5)
    truth = torch.arange(clusters.n_samples) // 3
    found = gates(clusters, truth, seed=0)
    assert [gate.quantile for gate in found] == list(QUANTILES)
    for gate in found:
        image, text = reliable_tables(clusters, image_quantile=gate.quantile, text_quantile=gate.quantile)
        a, c = clusters.image.labels.tolist(), clusters.text.labels.tolist()
        pairs = list(itertools.permutations(range(clusters.n_samples), 2))
        gone = [not (image[a[i], a[j]] and text[c[i], c[j]]) for i, j in pairs]
        false = [i // 3 == j // 3 for i, j in pairs]
        caught = sum(one and other for one, other in zip(gone, false, strict=True))
        assert gate.removed == pytest.approx(sum(gone) / len(pairs))
        assert gate.caught == pytest.approx(caught / sum(false), abs=0.01)  # drawn, not counted
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
    found = Thresholds.of(folder, Setting(sampler="cluster_similarity:image_quantile=0.5,text_threshold=0.25"))
    assert (found.image, found.text) == (pair_quantile(*image, 0.5), 0.25)
    found = Thresholds.of(folder, Setting(sampler="in_batch", weighting="weighted_infonce:image_quantile=none"))
    assert found.image is None
    assert "weighted_infonce" in found.origin
    found = Thresholds.of(folder, Setting(sampler="in_batch", weighting="uniform"))
    assert found.image == pair_quantile(*image, 0.95)
    assert "95%" in found.origin


def test_pairs_are_of_one_batch_and_weighed_as_a_batch_is(folder: ClustersFolder) -> None:
    setting = Setting(batch_size=16)
    method = Method.of(folder, setting)
    sampled = draw_pairs(method, setting)
    batches = {index: row for row, batch in enumerate(method.sampler) for index in batch}
    assert all(batches[i] == batches[j] for i, j in zip(sampled.images.tolist(), sampled.texts.tolist(), strict=True))
    assert (sampled.images != sampled.texts).all()
    assert float(sampled.weights.mean()) == pytest.approx(1.0)
    assert sampled.removed_share == 0
    lowest = doubtful(folder, sampled, Setting(pairs=7), folder.clusters.groups)
    assert lowest.kind == "lowest"
    assert len({frozenset((pair.image, pair.text)) for pair in lowest.pairs}) == len(lowest.pairs) == 7
    assert max(pair.weight for pair in lowest.pairs) <= float(sampled.weights.quantile(0.25))
    for pair in drawn(folder, method, sampled.scale, Setting(pairs=9), folder.clusters.groups).pairs:
        a, c = folder.clusters.image.labels, folder.clusters.text.labels
        assert a[pair.image] != a[pair.text]
        assert c[pair.image] != c[pair.text]
        assert pair.image_similarity == pytest.approx(float(folder.clusters.image_similarity[a[pair.image], a[pair.text]]))


def test_groups_of_a_weighting_remove_pairs_too(folder: ClustersFolder) -> None:
    method = Method.of(folder, Setting(batch_size=16, weighting="id_mask"))
    groups, everyone = method.terms.groups, torch.arange(folder.clusters.n_samples)
    images, texts = torch.cartesian_prod(everyone, everyone).T
    assert torch.equal(method.weights(images, texts) == 0, groups[images] == groups[texts])


def test_other_numbers_of_clusters(folder: ClustersFolder) -> None:
    found, none_because = granularities(folder, folder.clusters.groups, seed=0)
    assert [item.n_clusters for item in found] == [(2, 2), (3, 3), (6, 6), (12, 12)]
    assert none_because == ""
    assert all(-1 <= score <= 1 for item in found for score in item.silhouette)
    same = [item.same_cluster[0] for item in found]
    assert same == sorted(same, reverse=True)


def test_cards_show_the_nearest_and_the_farthest(folder: ClustersFolder) -> None:
    near = closeness(folder.clusters.image, folder.clusters.image_features)
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


def test_long_texts_are_cut() -> None:
    assert len(Album({0: "word " * 500}, None)[0].text) <= 280


def test_names_in_plots_are_text() -> None:
    name = "<script>$x_1$ &"
    svg = draw(lambda figure: figure.subplots().set_title(plain(name)), name=f'"{name}"', height=100)
    assert "&lt;script&gt;$x_1$ &amp;" in svg
    assert "<script" not in svg
    assert 'aria-label="&quot;&lt;script&gt;' in svg
