"""Collation keeps the order of its samples, or is an error."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from clip_negatives.errors import DataError
from tests.batches.squares import Squares, planned, wrapped


def test_own_collation_is_kept() -> None:
    loader = wrapped(DataLoader(Squares(), batch_size=4, collate_fn=lambda samples: [one["square"] for one in samples]))
    assert next(iter(loader))[0] == [0, 1, 4, 9]


def by_square(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return default_collate(sorted(samples, key=lambda sample: -sample["square"]))


def by_kind(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Sort by a value that most samples share, and add noise."""
    ordered = sorted(samples, key=lambda sample: sample["row"] % 7 == 6)
    return default_collate(ordered) | {"noise": torch.rand(len(samples))}


def shuffled(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    random.shuffle(samples)
    return default_collate(samples)


def replacing(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    good = [sample for sample in samples if sample["row"] != 13]
    return default_collate(good + good[: len(samples) - len(good)])


def encoded(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Compute new values from sorted samples, as processors do."""
    return {"pixels": torch.tensor([[sample["square"] / 100 - 1.0] * 3 for sample in sorted(samples, key=str)])}


def in_numpy(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"row": np.array([sample["row"] for sample in samples[::-1]])}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [by_square, by_kind, shuffled, replacing, encoded, in_numpy])
def test_collation_that_changes_the_order_is_an_error(workers: int, collate: Callable[..., Any]) -> None:
    random.seed(5)
    with pytest.raises(DataError, match="collate function changes the order"):
        list(planned(num_workers=workers, collate_fn=collate))


def test_a_collation_that_was_refused_stays_refused() -> None:
    loader = planned(collate_fn=encoded)
    for _ in range(2):
        with pytest.raises(DataError, match="collate function changes the order"):
            next(iter(loader))


def labelled(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Add tensors that have a row for each sample, but are not of the samples."""
    fixed = {"label": torch.arange(len(samples)), "target": torch.eye(len(samples))}
    return default_collate(samples) | fixed | {"partner": torch.tensor([sample["row"] for sample in samples]).roll(1, 0)}


def popping(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Change the samples, and compute new values, with random noise."""
    values = [sample.pop("square") + random.random() for sample in samples]
    return {
        "pixels": torch.tensor(values),
        "nested": torch.nested.nested_tensor([torch.ones(n + 1) for n in range(len(samples))]),
    }


def normalized(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixels": torch.tensor([[sample["square"] / 100 - 1.0] * 3 for sample in samples]),
        "label": torch.arange(len(samples)),
    }


@pytest.mark.parametrize(("collate", "is_checked"), [(labelled, True), (normalized, True), (popping, False)])
def test_collation_that_keeps_the_order_is_let_through(
    collate: Callable[..., Any], is_checked: bool, recwarn: pytest.WarningsRecorder
) -> None:
    assert len(list(planned(collate_fn=collate))) == 5
    texts = [
        str(warning.message) for warning in recwarn.list if "Could not check that collate_fn keeps" in str(warning.message)
    ]
    assert len(texts) == (0 if is_checked else 1)


def noisy(samples: list[dict[str, int]]) -> dict[str, Any]:
    noise = {"noise": torch.rand(len(samples)), "more": np.random.rand(), "most": random.random()}  # noqa: NPY002
    return {"value": torch.tensor([sample["square"] + 0.5 for sample in samples])} | noise


def test_collation_draws_the_same_random_numbers_as_without_us() -> None:
    loader = DataLoader(Squares(), batch_size=4, collate_fn=noisy)

    def seed() -> None:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)

    seed()
    expected = list(loader)
    seed()
    for (batch, _), other in zip(wrapped(loader), expected, strict=True):
        assert torch.equal(batch["noise"], other["noise"])
        assert (batch["more"], batch["most"]) == (other["more"], other["most"])
