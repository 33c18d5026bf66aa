"""The meter, against naive loops."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from clip_negatives import Columns
from clip_negatives.dataset import open_table
from clip_negatives.errors import InputError, UnknownNameError
from clip_negatives.host import registry
from clip_negatives.interfaces import LossTerms, SamplingContext
from clip_negatives.meter import meter, treatments, truth_of
from clip_negatives.meter.suspects import SAMPLED_PAIRS
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.sample_ids import integer_ids
from tests.pairs import write_csv

N = 64
WEIGHTING = "weighted_infonce:text_beta=0,remove=true,image_quantile=0.7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ClustersFolder:
    """Return clusters of data with unknown groups and equal texts."""
    base = tmp_path_factory.mktemp("meter")
    made = prepare(
        open_table(write_csv(base, N), Columns(group="item")),
        base / "clusters",
        Recipe(clusterer="kmeans:n_clusters=8"),
        progress=False,
    )
    groups = ["" if row % 7 == 0 else group for row, group in enumerate(made.samples["group"].to_pylist())]
    texts = made.samples["text"].to_pylist()
    texts[5] = texts[9] = texts[3]
    samples = made.samples.set_column(made.samples.column_names.index("group"), "group", [groups])
    return dataclasses.replace(made, samples=samples.set_column(samples.column_names.index("text"), "text", [texts]))


def test_shares_are_those_of_a_double_loop(folder: ClustersFolder) -> None:
    clusters, threshold = folder.clusters, 0.4
    texts, groups = folder.samples["text"].to_pylist(), folder.samples["group"].to_pylist()
    assert clusters.image_features is not None
    assert clusters.text_features is not None
    counts = dict.fromkeys(suspect.kind for suspect in meter(folder, 16, threshold=threshold).suspects)
    found = dict.fromkeys(counts, 0)
    for i, j in itertools.permutations(range(N), 2):
        a, b = clusters.image.labels[[i, j]]
        c, d = clusters.text.labels[[i, j]]
        found["same text"] += texts[i] == texts[j]
        found["same group"] += groups[i] == groups[j] != ""
        found["same image cluster"] += int(a == b)
        found["same text cluster"] += int(c == d)
        found["image clusters with similarity over 0.4"] += int(clusters.image_similarity[a, b] > threshold)
        found["text clusters with similarity over 0.4"] += int(clusters.text_similarity[c, d] > threshold)
        image, text = clusters.image_features[[i, j]], clusters.text_features[[i, j]]
        found["images with similarity over 0.4"] += int(image[0] @ image[1] > threshold)
        found["texts with similarity over 0.4"] += int(text[0] @ text[1] > threshold)
    assert min(found.values()) > 0
    for suspect in meter(folder, 16, threshold=threshold).suspects:
        share = found[suspect.kind] / (N * (N - 1))
        error = 0.0 if suspect.exact else 5 * math.sqrt(share / SAMPLED_PAIRS)
        assert suspect.share == pytest.approx(share, abs=error + 1e-12)
        assert suspect.per_anchor == pytest.approx(suspect.share * 15)
        assert suspect.exact == ("s with" not in suspect.kind or "clusters" in suspect.kind)


def test_batch_of_all_data_meets_the_expectation(folder: ClustersFolder) -> None:
    reading = meter(folder, N)
    expected = {suspect.kind: suspect.per_anchor for suspect in reading.suspects}
    for treatment in reading.treatments[:2]:
        assert treatment.sampler == "in_batch"
        assert treatment.per_anchor == treatment.per_anchor_kept == pytest.approx(expected[f"same {treatment.truth}"])
        assert (treatment.removed_share, treatment.mean_weight, treatment.false_weight) == (0.0, 1.0, 1.0)


def test_treatment_is_that_of_a_double_loop(folder: ClustersFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_negatives.metrics.false_negatives.CHUNK", 7)
    monkeypatch.setattr(treatments, "BATCHES", 10)  # of 4 an epoch
    found = {item.truth: item for item in meter(folder, 16, weighting=WEIGHTING, seed=2).treatments[2:]}
    sampler = registry.create(
        "negative_sampler", "cluster_similarity", SamplingContext(N, 16, seed=2, clusters=folder.clusters)
    )
    batches = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches += list(sampler)
    terms: LossTerms = registry.create("loss_weighting", WEIGHTING)(folder.clusters)
    assert terms.image_labels is not None
    assert terms.image_table is not None
    assert terms.text_labels is not None
    assert terms.text_table is not None
    weights: list[float] = []
    false: dict[str, list[float]] = {"text": [], "group": []}
    for batch in batches[:10]:
        for i, j in itertools.permutations(batch, 2):
            image = terms.image_table[terms.image_labels[i], terms.image_labels[j]]
            text = terms.text_table[terms.text_labels[i], terms.text_labels[j]]
            weights.append(math.exp(image + text))
            for kind, here in false.items():
                values = folder.samples[kind].to_pylist()
                if values[i] == values[j] != "":
                    here.append(weights[-1])
    kept = [weight for weight in weights if weight > 0]
    assert 0 < len(kept) < len(weights)
    for kind, here in false.items():
        item = found[kind]
        assert item.batches == 10
        assert item.per_anchor == pytest.approx(len(here) / 160)
        assert item.per_anchor_kept == pytest.approx(sum(weight > 0 for weight in here) / 160)
        assert item.removed_share == pytest.approx(1 - len(kept) / len(weights))
        mean = sum(kept) / len(kept)
        assert item.mean_weight == pytest.approx(mean)
        assert item.false_weight == (pytest.approx(sum(here) / len(here) / mean) if here else None)


def test_method_removes_false_negatives(folder: ClustersFolder) -> None:
    before, after = (item for item in meter(folder, 32).treatments if item.truth == "group")
    assert after.per_anchor_kept < before.per_anchor_kept


def test_large_batches_are_looked_at_less_often(folder: ClustersFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treatments, "PAIRS", 3 * 16 * 15)
    assert {item.batches for item in meter(folder, 16).treatments} == {3}
    assert {item.batches for item in meter(folder, N).treatments} == {1}


def test_same_seed_gives_the_same_reading_as_json(folder: ClustersFolder) -> None:
    first = json.dumps(meter(folder, 16, seed=4).to_dict())
    assert json.dumps(meter(folder, 16, seed=4).to_dict()) == first
    assert json.dumps(meter(folder, 16, seed=5).to_dict()) != first


def test_data_without_groups_and_features(folder: ClustersFolder) -> None:
    clusters = dataclasses.replace(folder.clusters, image_features=None, text_features=None)
    bare = dataclasses.replace(folder, clusters=clusters, samples=folder.samples.select(["key", "text"]))
    reading = meter(bare, 16)
    assert {item.truth for item in reading.treatments} == {"text"}
    assert all(suspect.exact for suspect in reading.suspects)
    assert truth_of(bare)[0] == "text"
    assert truth_of(folder)[0] == "group"


def test_unknown_groups_equal_no_other(tmp_path: Path) -> None:
    numbers = integer_ids(["a", "", "b", "", "a"])
    assert numbers[0] == numbers[4]
    assert len(set(numbers.tolist())) == 4
    assert torch.equal(integer_ids([""]), torch.tensor([1]))


def test_values_out_of_range(folder: ClustersFolder) -> None:
    for batch_size in (1, N + 1):
        with pytest.raises(InputError, match=f"batch size within 2 .. {N}"):
            meter(folder, batch_size)
    with pytest.raises(InputError, match=r"threshold within -1 .. 1"):
        meter(folder, 16, threshold=1.5)
    with pytest.raises(UnknownNameError):
        meter(folder, 16, sampler="unknown")
