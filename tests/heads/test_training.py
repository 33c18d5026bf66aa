"""Heads equal a loop in plain torch, and learn."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from clip_negatives import Method, SamplingContext
from clip_negatives.errors import InputError
from clip_negatives.heads import HeadSettings, LinearHeads, train_heads
from clip_negatives.metrics import rank_at_k
from tests.conftest import make_clusters

SHORT = HeadSettings(lr=1e-2, steps=6, batch_size=32, dim=6)


def test_in_batch_negatives_equal_open_clips_loss_in_a_plain_loop() -> None:
    clusters = make_clusters()
    heads = train_heads(clusters, Method.parse("in_batch"), SHORT, seed=3)
    expected = LinearHeads((8, 8), 6, seed=3)
    optimizer = torch.optim.AdamW(expected.parameter_groups(0.1), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=6, pct_start=0.1)
    sampler = Method.parse("in_batch").create_sampler(SamplingContext.of(clusters, 32, seed=3))
    for batch in itertools.islice(sampler, 6):
        optimizer.zero_grad()
        x = F.normalize(clusters.image_features[batch] @ expected.image, dim=1)
        y = F.normalize(clusters.text_features[batch] @ expected.text, dim=1)
        ClipLoss()(x, y, expected.log_scale.exp()).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(dict(heads.named_parameters()), dict(expected.named_parameters()))


@pytest.mark.parametrize(
    "method", ["in_batch@0.1", "default", "known_different@0.1", "siglip", "reliable_texts+uniform", "triplets+uniform"]
)
def test_heads_learn_with_every_form_of_loss(method: str) -> None:
    clusters = make_clusters(n=240)
    captions = [f"text {row}" for row in range(240)]
    heads = train_heads(clusters, Method.parse(method), HeadSettings(1e-2, 120, 64, 8), captions=captions)
    features = clusters.image_features, clusters.text_features
    start = LinearHeads((8, 8), 8)
    before, after = (
        float(rank_at_k(texts, images, torch.arange(240), torch.arange(240), (10,)))
        for images, texts in (start.embed(*features), heads.embed(*features))
    )
    assert after > before
    assert heads.temperature == pytest.approx(0.1) if "@" in method else heads.temperature != 0.07
    assert not heads.training


def test_dropout_hides_entries_in_training_only() -> None:
    heads = LinearHeads((400, 400), 4, dropout=0.25)
    kept = heads._dropped(torch.ones(50, 400))
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 4 / 3]))
    assert float((kept == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    features = F.normalize(torch.randn(9, 400), dim=1)
    assert not torch.equal(heads(features, features)[0], heads(features, features)[0])
    heads.eval()
    torch.testing.assert_close(heads(features, features), heads.embed(features, features))


def test_dropout_is_deterministic_for_any_shape() -> None:
    features = torch.randn(5, 7)
    first, second = (LinearHeads((7, 7), 4, seed=3, dropout=0.5)._dropped(features) for _ in range(2))
    assert torch.equal(first, second)
    assert set((first / features).flatten().tolist()) == {0.0, 2.0}


def test_the_global_generator_is_untouched() -> None:
    state = torch.get_rng_state()
    train_heads(make_clusters(), Method.parse("in_batch"), HeadSettings(steps=2, batch_size=16, dim=4, dropout=0.1))
    assert torch.equal(torch.get_rng_state(), state)


def test_new_clusters_are_used_from_the_next_epoch_on() -> None:
    clusters, epochs = make_clusters(), list[int]()

    def refresh(heads: LinearHeads, epoch: int) -> None:
        epochs.append(epoch)

    steps = list[int]()
    settings = HeadSettings(steps=16, batch_size=32, dim=4)
    train_heads(clusters, Method.parse("default"), settings, refresh=refresh, on_step=lambda step, heads: steps.append(step))
    assert steps == list(range(17))
    assert epochs == [1, 2]  # 7 batches each


def test_added_captions_without_features_are_an_error() -> None:
    clusters = make_clusters()
    with pytest.raises(InputError, match="needs the captions of the data"):
        train_heads(clusters, Method.parse("reliable_texts+uniform"), SHORT)
    captions = [f"a black shoe {row}" for row in range(clusters.n_samples)]
    with pytest.raises(InputError, match="no features"):
        train_heads(clusters, Method.parse("swapped_words+uniform"), SHORT, captions=captions)
