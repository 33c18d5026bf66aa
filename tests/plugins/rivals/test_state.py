"""What SogCLR and GloFND remember: by loops, across checkpoints, new clusters and processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clip_negatives import registry
from clip_negatives.loss import NegativesClipLoss
from tests.conftest import make_clusters
from tests.info_nce import features, gradients

N, B, SCALE = 60, 8, 4.0
STEPS = torch.randint(N, (12, 64), generator=torch.Generator().manual_seed(1)).unbind()
BATCHES = [step.unique()[torch.randperm(len(step.unique()), generator=torch.Generator().manual_seed(2))][:B] for step in STEPS]
STATEFUL = ["sogclr:gamma=0.6", "glofnd:alpha=0.2,after=1"]


def loss_of(spec, **options):
    return NegativesClipLoss(terms=registry.create("loss_weighting", spec)(make_clusters(N, 6, 5)), **options)


def step(loss, number, part=slice(None)):
    x, y = (side[part] for side in features(B, 4, seed=number))
    x, y = (side.detach().requires_grad_() for side in (x, y))
    value = loss(x, y, torch.tensor(SCALE, dtype=torch.float64), index=BATCHES[number][part])
    return value, gradients(value, x, y)


def test_sogclr_by_loops():
    loss, gamma = loss_of("sogclr:gamma=0.6"), 0.6
    u = {"image": {}, "text": {}}
    for number, batch in enumerate(BATCHES):
        x, y = (side.detach() for side in features(B, 4, seed=number))
        s = (x @ y.T).tolist()
        total = 0.0
        for modality in u:
            for i in range(B):
                cosine = s[i] if modality == "image" else [row[i] for row in s]
                g = sum(math.exp((cosine[j] - cosine[i]) * SCALE) for j in range(B) if j != i) / (B - 1)
                sample = int(batch[i])
                before = u[modality].get(sample)
                u[modality][sample] = g if before is None else (1 - gamma) * before + gamma * g
                total += g / u[modality][sample] / SCALE
        assert step(loss, number)[0].item() == pytest.approx(total / (2 * B), rel=1e-5)
    for modality, found in u.items():
        state = getattr(loss.anchor_loss, modality)
        assert {i for i in range(N) if state[i] > -math.inf} == set(found)
        assert all(float(state[i].exp()) == pytest.approx(value, rel=1e-5) for i, value in found.items())


def test_sogclr_slope_is_that_of_the_whole_contrast():
    """Where u is exact and the batch is all there is, the slope is that of log g, InfoNCE without the positive below."""
    x, y = features(B, 4)
    found = gradients(loss_of("sogclr:gamma=1.0")(x, y, torch.tensor(SCALE, dtype=torch.float64), index=BATCHES[0]), x, y)
    logits, own = SCALE * x @ y.T, torch.eye(B, dtype=torch.bool)
    log_g = [z.masked_fill(own, -torch.inf).logsumexp(1) - z.diagonal() for z in (logits, logits.T)]
    expected = gradients(torch.cat(log_g).mean() / SCALE, x, y)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_glofnd_finds_the_share():
    """Of samples that are seen again and again, the share alpha of the negatives comes to lie above the threshold."""
    n = 200
    loss = NegativesClipLoss(terms=registry.create("loss_weighting", "glofnd:alpha=0.1,lr=0.01")(make_clusters(n, 6, 5)))
    x, y = (side.detach() for side in features(n, 6))
    for _ in range(400):
        loss(x, y, torch.tensor(SCALE, dtype=torch.float64), index=torch.arange(n))
    above = (x @ y.T > loss.anchor_loss.image_threshold[:, None].double()).fill_diagonal_(False).double().mean(1)
    assert float(above.mean()) == pytest.approx(0.1, abs=0.02)
    # And the loss is that of what is left.
    threshold = {"image": loss.anchor_loss.image_threshold.clone(), "text": loss.anchor_loss.text_threshold.clone()}
    found = loss(x, y, torch.tensor(SCALE, dtype=torch.float64), index=torch.arange(n))
    kept = [
        z.masked_fill((z > threshold[name][:, None]) & ~torch.eye(n, dtype=torch.bool), -torch.inf)
        for name, z in (("image", x @ y.T), ("text", (x @ y.T).T))
    ]
    expected = sum(torch.nn.functional.cross_entropy(SCALE * z, torch.arange(n)) for z in kept) / 2
    assert found.item() == pytest.approx(expected.item(), rel=0.02)  # thresholds moved one step meanwhile


@pytest.mark.parametrize("spec", STATEFUL)
def test_state_goes_on_after_a_checkpoint_and_new_clusters(spec):
    whole, first = loss_of(spec), loss_of(spec)
    expected = [step(whole, number)[0] for number in range(len(BATCHES))]
    for number in range(6):
        step(first, number)
    second = loss_of(spec)
    second.load_state_dict(first.state_dict())
    third = loss_of(spec)
    third.load_state_dict(first.state_dict())
    third.set_terms(registry.create("loss_weighting", spec)(make_clusters(N, 7, 4, seed=1)))
    for number in range(6, len(BATCHES)):
        for loss in (second, third):
            torch.testing.assert_close(step(loss, number)[0], expected[number])


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for spec in (*STATEFUL, "llave:alpha=2.0", "weight", "siglip", "swap"):
        for local_loss in (False, True):
            how = {"local_loss": local_loss, "gather_with_grad": True, "rank": rank, "world_size": 2}
            loss = loss_of(spec, **how)
            part = slice(rank * B // 2, (rank + 1) * B // 2)
            results = [step(loss, number, part) for number in range(5)]
            found[spec, local_loss] = [value.detach() for value, _ in results], results[-1][1], loss.state_dict()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_as_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3])
    mp.spawn(_process, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for (spec, local_loss), (values, slopes, state) in parts[0].items():
        other_values, other_slopes, other_state = parts[1][spec, local_loss]
        one = loss_of(spec)
        results = [step(one, number) for number in range(5)]
        for number, (value, _) in enumerate(results):
            mean = (values[number] + other_values[number]) / 2
            torch.testing.assert_close(mean, value.detach(), msg=f"{spec}, local_loss={local_loss}, step {number}")
        # DDP averages over processes: the slopes of each are of the sum with a global loss counted twice.
        together = [torch.cat(pair) / 2 for pair in zip(slopes, other_slopes, strict=True)]
        for found, expected in zip(together, results[-1][1], strict=True):
            torch.testing.assert_close(found, expected)
        for name, buffer in one.state_dict().items():
            if torch.is_tensor(buffer):
                torch.testing.assert_close(state[name], buffer)
                torch.testing.assert_close(other_state[name], buffer)
