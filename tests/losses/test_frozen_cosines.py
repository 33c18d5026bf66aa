"""The frozen similarities that an anchor loss gets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.anchors import anchors, removed_above
from clip_negatives.frozen_similarity import EQUAL, frozen_cosines, frozen_distances, frozen_log_distances
from clip_negatives.step import Step, StepSamples, Towers

FEATURES = F.normalize(torch.randn(20, 64, generator=torch.Generator().manual_seed(0)), dim=1)
OTHERS = F.normalize(torch.randn(20, 64, generator=torch.Generator().manual_seed(1)), dim=1)
IDS = torch.tensor([3, 1, 4, 15, 9])
LIKE = torch.empty(0)


def test_the_anchors_are_the_candidates() -> None:
    samples = StepSamples(IDS, IDS)
    expected = FEATURES[IDS] @ FEATURES[IDS].T
    first = frozen_cosines(FEATURES, samples, LIKE)
    torch.testing.assert_close(first, expected)
    first.zero_()  # a loss may change what it gets
    torch.testing.assert_close(frozen_cosines(FEATURES, samples, LIKE), expected)
    torch.testing.assert_close(frozen_cosines(OTHERS, samples, LIKE), OTHERS[IDS] @ OTHERS[IDS].T)
    assert frozen_cosines(FEATURES, samples, LIKE.double()).dtype == torch.float64


def test_the_result_has_the_memory_layout_of_the_live_similarities() -> None:
    samples, like = StepSamples(IDS, IDS), torch.empty(5, 5)
    images, texts = (frozen_cosines(FEATURES, samples, part) for part in (like, like.T))
    assert (images.stride(), texts.stride()) == ((5, 1), (1, 5))
    torch.testing.assert_close(images, texts)


def test_equal_features_have_no_distance() -> None:
    cosines = torch.cat([torch.linspace(-1.1, 1.1, 1001), 1 - torch.arange(100) * 2.0**-24])
    masked = (1 - cosines.clamp(min=0.0)).masked_fill(cosines > 1 - EQUAL, 0.0)
    assert torch.equal(frozen_distances(cosines), masked)


def test_values_above_their_limit_are_removed() -> None:
    values, limits = torch.tensor([0.0, -0.5, 0.3, 1.0]), torch.tensor([[0.3], [0.0], [-1.0], [torch.inf]])
    removed = removed_above(values, limits)
    assert torch.equal(removed, torch.zeros(4, 4).masked_fill(values > limits, -torch.inf))
    close = torch.tensor([0.5]).nextafter(torch.tensor(1.0))
    assert removed_above(close, torch.tensor([0.5])).item() == -torch.inf


def test_other_candidates() -> None:
    samples = StepSamples(IDS[1:3], IDS, offset=1)
    torch.testing.assert_close(frozen_cosines(FEATURES, samples, LIKE), FEATURES[IDS[1:3]] @ FEATURES[IDS].T)
    across = frozen_cosines(FEATURES, StepSamples(IDS, IDS), LIKE, candidates=OTHERS)
    torch.testing.assert_close(across, FEATURES[IDS] @ OTHERS[IDS].T)


@pytest.mark.parametrize("samples", [StepSamples(IDS, IDS), StepSamples(IDS, IDS.clone())])
def test_autocast_does_not_round_them(samples: StepSamples) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        cosines = frozen_cosines(FEATURES, samples, LIKE)
    assert cosines.dtype == torch.float32
    assert (cosines.diagonal() - 1).abs().max() < 1e-6


def test_the_texts_have_the_transposed_logits_of_the_images() -> None:
    x, y = FEATURES[IDS].requires_grad_(), OTHERS[IDS].requires_grad_()
    features, scale = Towers(x, y), (torch.tensor(5.0), torch.tensor(-1.0))
    images, texts = anchors(Step(StepSamples(IDS, IDS), features, features, *scale))
    gathered = list(anchors(Step(StepSamples(IDS, IDS), features, Towers(x.clone(), y.clone()), *scale)))
    for side, other in zip((images, texts), gathered, strict=True):
        torch.testing.assert_close(side.logits, other.logits)
        torch.testing.assert_close(side.cosines, other.cosines)
    assert [side.modality for side in (images, texts)] == ["image", "text"]
    torch.testing.assert_close(texts.logits, 5 * y @ x.T - 1)


def test_log_distances_are_of_the_largest_similarity_and_kept_for_the_texts():
    parts = [torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1)]
    index = torch.tensor([4, 0, 2])
    samples, like = StepSamples(index, index), torch.zeros(3, 3)
    images = frozen_log_distances(parts, samples, like)
    largest = torch.maximum(*(part[index] @ part[index].T for part in parts))
    torch.testing.assert_close(images, frozen_distances(largest).log())
    assert frozen_log_distances(parts, samples, like.T).data_ptr() == images.data_ptr()
    torch.testing.assert_close(frozen_log_distances(parts, StepSamples(index, index.clone()), like), images)
