"""The counts and the quality of the features against naive counts, and the sentences about them."""

from __future__ import annotations

import dataclasses
import itertools

import pyarrow as pa
import pytest
import torch

from clip_negatives import ClustersFolder
from clip_negatives.checking import verdict_of
from clip_negatives.checking.quality import quality_of
from clip_negatives.checking.rates import Rate, Rates, joint_ids, rates_of, same_share
from clip_negatives.checking.truth import truth_about, with_groups

from .conftest import N


def pairs_with(*ids: torch.Tensor) -> float:
    """Return the share of pairs that have all these ids in common, by a double loop."""
    lists = [part.tolist() for part in ids]
    pairs = list(itertools.combinations(range(len(lists[0])), 2))
    return sum(all(part[i] == part[j] for part in lists) for i, j in pairs) / len(pairs)


def test_known_false_negatives_equal_a_double_loop(grouped: ClustersFolder) -> None:
    truth = truth_about(grouped)
    rates = rates_of(truth)
    shares = {rate.kind: rate.share for rate in rates.kinds}
    assert truth.groups is not None
    assert shares["same group"] == pytest.approx(pairs_with(truth.groups))
    assert shares["same text"] == pytest.approx(pairs_with(truth.texts))
    either = pairs_with(truth.groups) + pairs_with(truth.texts) - pairs_with(truth.groups, truth.texts)
    assert rates.all.kind == "same group or text"
    assert not rates.all.is_estimate
    assert rates.all.share == pytest.approx(either)
    assert rates.sentence().startswith("Yes. In a batch of 256, an image meets ")


def test_without_groups_near_duplicates_are_estimated(grouped: ClustersFolder, ungrouped: ClustersFolder) -> None:
    known, estimated = rates_of(truth_about(grouped)).all.share, rates_of(truth_about(ungrouped)).all
    assert estimated.is_estimate
    assert estimated.kind == "same text, or likely near-duplicates"
    assert 0.1 * known < estimated.share < 1.5 * known


def test_few_groups_are_not_the_truth(grouped: ClustersFolder) -> None:
    names = grouped.samples["group"].to_pylist()
    partly = with_groups(grouped, [name if row < N // 4 else "" for row, name in enumerate(names)])
    truth = truth_about(partly)
    assert truth.coverage == pytest.approx(0.25)
    assert not truth.has_groups
    assert rates_of(truth).all.kind == "same group or text, or likely near-duplicates"


@pytest.mark.parametrize(
    ("n", "sizes", "left_out", "reference"),
    [
        (100, (100,), (256, 1024, 4096, 32_768), 100),
        (600, (256,), (1024, 4096, 32_768), 256),
        (5000, (256, 1024, 4096), (32_768,), 1024),
        (40_000, (256, 1024, 4096, 32_768), (), 1024),
    ],
)
def test_batch_sizes(n: int, sizes: tuple[int, ...], left_out: tuple[int, ...], reference: int) -> None:
    rates = Rates(n, (), Rate("same text", 0.0))
    assert (rates.batch_sizes, rates.left_out, rates.verdict_batch_size) == (sizes, left_out, reference)


@pytest.mark.parametrize(
    ("per_anchor", "is_estimate", "start"),
    [
        (0.0, False, "No. "),
        (0.009, True, "No. "),
        (0.05, False, "Few. "),
        (0.2, True, "Few, if any. "),
        (0.2, False, "Yes. "),
        (0.5, True, "Probably. "),
    ],
)
def test_sentence_by_the_number_of_false_negatives(per_anchor: float, is_estimate: bool, start: str) -> None:
    rates = Rates(5000, (), Rate("same text", per_anchor / 1023, is_estimate))
    assert rates.sentence().startswith(start)
    assert rates.is_negligible == (start == "No. ")
    assert ("an image meets fewer than 0.01 false" in rates.sentence()) == rates.is_negligible


def test_the_headline_column_says_what_it_counts(grouped: ClustersFolder, ungrouped: ClustersFolder) -> None:
    rates = [rates_of(truth_about(folder)) for folder in (grouped, ungrouped)]
    assert [rate.headline_column for rate in rates] == ["same group or text", "any of these"]
    clusters = dataclasses.replace(ungrouped.clusters, image_features=None, text_features=None)
    assert rates_of(truth_about(dataclasses.replace(ungrouped, clusters=clusters))).headline_column == "same text"


def test_recall_and_precision_equal_a_double_loop(grouped: ClustersFolder) -> None:
    truth = truth_about(grouped)
    quality = quality_of(grouped, truth)
    assert [(match.modality, match.truth) for match in quality.matches] == [("image", "group"), ("text", "group")]
    assert truth.groups is not None
    for match in quality.matches:
        labels = getattr(grouped.clusters, match.modality).labels
        both = pairs_with(labels, truth.groups)
        assert match.recall == pytest.approx(both / pairs_with(truth.groups))
        assert match.precision == pytest.approx(both / pairs_with(labels))
        assert match.chance == pytest.approx(pairs_with(truth.groups))


def test_joint_ids() -> None:
    first, second = torch.tensor([7, 7, 7, 2]), torch.tensor([900, 900, 5, 900])
    joint = joint_ids(first, second)
    assert (joint[:, None] == joint[None, :]).tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]
    assert same_share(joint) == pytest.approx(1 / 6)


def test_encoders_without_weights_name_better_ones(grouped: ClustersFolder) -> None:
    better = quality_of(grouped, truth_about(grouped)).better
    assert "--image-encoder efficientnet-lite0" in better[0]
    assert "--text-encoder minilm" in better[1]
    manifest = {**grouped.manifest, "image_encoder": "efficientnet-lite0:image_size=128", "text_encoder": "minilm"}
    assert quality_of(dataclasses.replace(grouped, manifest=manifest), truth_about(grouped)).better == ()


def test_without_features_nothing_is_estimated(ungrouped: ClustersFolder) -> None:
    clusters = dataclasses.replace(ungrouped.clusters, image_features=None, text_features=None)
    verdict = verdict_of(dataclasses.replace(ungrouped, clusters=clusters))
    assert verdict.rates.all.kind == "same text"
    assert verdict.quality.overlap is None


def test_equal_texts_are_the_truth_without_groups(ungrouped: ClustersFolder) -> None:
    texts = pa.array([f"text {row // 30}" for row in range(N)])
    samples = ungrouped.samples.set_column(ungrouped.samples.column_names.index("text"), "text", texts)
    quality = verdict_of(dataclasses.replace(ungrouped, samples=samples)).quality
    assert [(match.modality, match.truth) for match in quality.matches] == [("image", "text")]
