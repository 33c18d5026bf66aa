"""Neighbourhoods and similar pairs against naive double loops."""

from __future__ import annotations

import math

import pytest
import torch

from clip_negatives.errors import InputError
from clip_negatives.heads import Neighbourhoods, components, near_duplicates
from clip_negatives.heads import agreement as agreement_module


def features(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and text features of n samples, in which samples 2i and 2i + 1 are near-duplicates."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(n // 2, 8, generator=generator).repeat_interleave(2, 0) for _ in range(2))
    return tuple(part + 0.05 * torch.randn(n, 8, generator=generator) for part in (images, texts))


def ranks(part: torch.Tensor, m: int) -> list[dict[int, int]]:
    """Return the rank, from 1, of each of the m nearest other samples of each sample."""
    cosines = (part @ part.T).fill_diagonal_(-2.0)
    return [{j: rank for rank, j in enumerate(row[:m].tolist(), 1)} for row in cosines.argsort(descending=True)]


@pytest.mark.parametrize("m", [5, 128])
def test_pairs_equal_a_double_loop(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_module, "NEIGHBOURS", m)
    neighbourhoods = Neighbourhoods.of(*features())
    n, m = 40, min(m, 39)
    by_image, by_text = (ranks(part, m) for part in (neighbourhoods.images, neighbourhoods.texts))
    both = [(i, j) for i in range(n) for j in by_image[i] if j in by_text[i]]

    def bins(i: int, j: int) -> tuple[int, int]:
        return int(math.log2(by_image[i][j])), int(math.log2(by_text[i][j]))

    counts, sizes = {}, [sum(int(math.log2(rank)) == number for rank in range(1, m + 1)) for number in range(8)]
    for pair in both:
        counts[bins(*pair)] = counts.get(bins(*pair), 0) + 1
    lifts: dict[tuple[int, int], float] = {}
    for i, j in both:
        a, b = bins(i, j)
        lift = counts[a, b] / (n * sizes[a] * sizes[b] / (n - 1))
        lifts[min(i, j), max(i, j)] = max(lift, lifts.get((min(i, j), max(i, j)), 0.0))
    pairs = neighbourhoods.pairs()
    assert list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == sorted(lifts)
    assert pairs.lift.tolist() == pytest.approx([lifts[pair] for pair in sorted(lifts)], rel=1e-5)
    assert torch.allclose(pairs.image, (neighbourhoods.images[pairs.left] * neighbourhoods.images[pairs.right]).sum(1))
    nearest = [[{j for j, rank in row.items() if rank <= 3} for row in part] for part in (by_image, by_text)]
    shared = [len(a & b) for a, b in zip(*nearest, strict=True)]
    assert neighbourhoods.overlap(3) == pytest.approx(sum(shared) / (3 * n))


def test_near_duplicates_have_the_largest_agreement() -> None:
    pairs = Neighbourhoods.of(*features()).pairs()
    first = pairs.take(pairs.agreement.argsort(descending=True)[:20])
    assert torch.equal(first.left // 2, first.right // 2)
    assert near_duplicates(*features()).tolist() == [number // 2 for number in range(40)]


def test_the_duplicate_probability_is_zero_without_agreement_or_at_the_lift_of_unrelated_pairs() -> None:
    pairs = Neighbourhoods.of(*features()).pairs()
    probability = pairs.duplicate_probability
    assert (probability[(pairs.lift <= 16) | (pairs.agreement <= 0.05)] == 0).all()
    kept = probability > 0
    assert torch.allclose(probability[kept], 1 - 16 / pairs.lift[kept])


def test_components() -> None:
    assert components(5, torch.tensor([0, 3]), torch.tensor([2, 4])).tolist() == [0, 1, 0, 2, 2]


def test_one_sample_has_no_neighbours() -> None:
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        Neighbourhoods.of(torch.ones(1, 4), torch.ones(1, 4))
