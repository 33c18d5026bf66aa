"""A weighting that leaves nothing to learn from is refused by every way into training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from clip_negatives import attach
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering, LossTerms
from clip_negatives.step import BatchSamples
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.training.weighting import batch_keeps_pairs, keeps_pairs, loss_terms
from tests.integrations.clustered import BATCH, Pictures, write_folder

BLOBS = make_blobs()
ALL = torch.full((1, 1), -torch.inf)


def one_cluster():
    """Return clusters of data that are all alike."""
    one = Clustering(torch.zeros(240, dtype=torch.int64), F.normalize(torch.ones(1, 16), dim=1))
    return dataclasses.replace(BLOBS, image=one, text=one, image_similarity=torch.ones(1, 1), text_similarity=torch.ones(1, 1))


@pytest.mark.parametrize("weighting", ["gate", "gate2", "weighted_infonce:remove=true"])
def test_one_cluster_is_refused_by_what_removes_pairs_of_a_cluster(weighting: str) -> None:
    with pytest.raises(InputError, match=f"weighting {weighting} removes all"):
        loss_terms(weighting, one_cluster())
    assert loss_terms(weighting, BLOBS) is not None


@pytest.mark.parametrize("weighting", ["uniform", "weighted_infonce", "gist", "dcl", "multi_positive:by=group", "sogclr"])
def test_one_cluster_is_taken_by_the_others(weighting: str) -> None:
    assert loss_terms(weighting, one_cluster()) is not None


@pytest.mark.parametrize(
    ("terms", "kept"),
    [
        (LossTerms(), True),
        (LossTerms(image_labels=torch.zeros(9, dtype=torch.int64), image_table=ALL), False),
        (LossTerms(image_labels=torch.zeros(1, dtype=torch.int64), image_table=ALL), True),  # there are no pairs
        (LossTerms(groups=torch.zeros(9, dtype=torch.int64), attract=False), False),
        (LossTerms(groups=torch.zeros(9, dtype=torch.int64)), True),  # pulled together
        (LossTerms(groups=torch.tensor([0] * 8 + [1]), attract=False), True),
    ],
)
def test_whether_pairs_are_kept(terms: LossTerms, kept: bool) -> None:
    assert keeps_pairs(terms) is kept
    assert batch_keeps_pairs(terms, BatchSamples(ids=torch.arange(terms.n_samples or 9))) is kept


def test_a_batch_by_labels_of_a_stream() -> None:
    terms = LossTerms(
        image_labels=torch.tensor([0, 1]), image_table=torch.tensor([[-torch.inf, 0.0], [0.0, -torch.inf]])
    ).for_stream()
    labels = torch.tensor([[0, 0], [0, 0], [0, 0]])
    assert not batch_keeps_pairs(terms, BatchSamples(labels=labels))
    labels[2, 0] = -1  # without a label: its pairs count as they are
    assert batch_keeps_pairs(terms, BatchSamples(labels=labels))


def test_attach_refuses(tmp_path: Path) -> None:
    folder, _ = write_folder(tmp_path / "clusters")
    with pytest.raises(InputError, match="learn nothing"):
        attach(DataLoader(Pictures(), batch_size=BATCH), folder, weighting="random_reduction:share=1.0")
