"""Weights that change during the training: the loss equals that of scaled tables and factors, on every backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters
from clip_negatives.losses.functional import weighted_info_nce
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives.terms import LossTerms
from clip_negatives.training.weighting import batch_terms
from clip_negatives_plugins.siglip.weighting import SigLip
from clip_negatives_plugins.weighted_infonce.weighting import WeightedInfoNCE
from tests.info_nce import BACKENDS, features

N, K = 12, 4
SCHEDULE = ((0.2, 0.5), (0.6, 1.0), (1.0, 0.25))
FACTORS = {0.0: 0.5, 0.2: 0.5, 0.4: 0.75, 0.6: 1.0, 0.8: 0.625, 1.0: 0.25}  # by share of the training
REMOVED = (0, 1)  # image clusters whose pairs are removed


def terms(schedule: tuple[tuple[float, float], ...] = SCHEDULE, factor: float = 1.0, **options: object) -> LossTerms:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(K, (N,), generator=generator) for _ in range(2)]
    tables = [-torch.rand(K, K, generator=generator) * factor for _ in range(2)]
    tables[0][REMOVED] = -torch.inf
    vectors = torch.randn(N, 3, generator=generator) * factor**0.5
    return LossTerms(
        image_labels=labels[0],
        image_table=tables[0],
        text_labels=labels[1],
        text_table=tables[1],
        factors=vectors,
        schedule=schedule,
        **options,
    )


def samples(progress: float | None) -> BatchSamples:
    samples = BatchSamples(ids=torch.arange(N))
    return samples if progress is None else samples.at(round(progress * 1000), 1000)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("progress", FACTORS)
def test_the_loss_of_scaled_log_weights(backend: str, progress: float) -> None:
    x, y = features(N, N)
    loss = NegativesClipLoss(terms=terms(normalize=True), backend=backend)
    expected = weighted_info_nce(x, y, 5.0, terms=terms((), FACTORS[progress], normalize=True), backend=backend)
    torch.testing.assert_close(loss(x, y, torch.tensor(5.0), samples=samples(progress)), expected)


def test_a_factor_of_0_keeps_removed_pairs_removed() -> None:
    start = terms(((0.0, 0.0), (1.0, 1.0))).at(torch.tensor(0.0))
    assert start.image_table is not None
    assert start.image_table[REMOVED] == -torch.inf
    assert not start.image_table.isnan().any()
    assert float(start.image_table.masked_fill(start.image_table == -torch.inf, 0.0).abs().max()) < 1e-25
    assert start.factors is not None
    assert not start.factors.any()
    assert not start.scheduled


def test_weighted_infonce_warms_up(clusters: Clusters) -> None:
    ids = torch.arange(N)
    full, warm = WeightedInfoNCE()(clusters), WeightedInfoNCE(warmup=0.5)(clusters)
    assert full.schedule == ()
    for progress, factor in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        taken = batch_terms(warm, BatchSamples(ids=ids).at(round(progress * 1000), 1000))
        torch.testing.assert_close(taken.image_table, factor * full.image_table)
        torch.testing.assert_close(taken.text_table, factor * full.text_table)


def test_unknown_progress_is_an_error() -> None:
    x, y = features(N, N)
    loss = NegativesClipLoss(terms=terms())
    with pytest.raises(InputError, match=r"attach\(..., epochs=EPOCHS\)"):
        loss(x, y, torch.tensor(5.0), samples=samples(None))
    with pytest.raises(InputError, match="depend on the progress"):
        weighted_info_nce(x, y, 5.0, terms=terms())
    loss.eval()
    torch.testing.assert_close(loss(x, y, torch.tensor(5.0)), weighted_info_nce(x, y, 5.0))


@pytest.mark.parametrize(
    "schedule", [((0.5, 1.0), (0.5, 2.0)), ((0.0, -1.0),), ((0.0, 1.0, 2.0),), ((2.0, 1.0),), [(0.0, 1.0)], "a"]
)
def test_wrong_schedules_are_errors(schedule: object) -> None:
    with pytest.raises(InputError, match=r"schedule must be pairs"):
        NegativesClipLoss(terms=LossTerms(schedule=schedule))


def test_a_state_of_another_schedule_is_an_error() -> None:
    stored = NegativesClipLoss(terms=terms()).state_dict()
    NegativesClipLoss(terms=terms()).load_state_dict(stored)
    with pytest.raises(InputError, match="another weighting"):
        NegativesClipLoss(terms=terms(((0.0, 0.0), (1.0, 1.0)))).load_state_dict(stored)


def test_siglip_refuses_a_schedule(clusters: Clusters) -> None:
    with pytest.raises(InputError, match="schedule"):
        SigLip(of="weighted_infonce:warmup=0.5")(clusters)


def test_batches_keep_their_progress() -> None:
    batch = BatchSamples(ids=torch.arange(3)).at(1, 4)
    assert float(batch.to("cpu").progress) == 0.25
    assert len(batch) == 3
    assert [len(part) for part in batch] == [3]
    joined = BatchSamples.concatenate([batch, BatchSamples(ids=torch.arange(3)).at(1, 2)])
    assert float(joined.progress) == 0.25
    assert BatchSamples(ids=torch.arange(3)).progress is None


def test_no_recompilation_when_the_progress_changes() -> None:
    compiled_at = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        compiled_at.append(len(inputs))
        return graph.forward

    scheduled = terms()
    compiled = torch.compile(lambda progress: scheduled.at(progress).image_table.exp().sum(), backend=backend, fullgraph=True)
    for progress in FACTORS:
        torch.testing.assert_close(
            compiled(torch.tensor(progress)), scheduled.at(torch.tensor(progress)).image_table.exp().sum()
        )
    assert len(compiled_at) == 1
