"""The state of SogCLR and GloFND: by loops, across checkpoints, new clusters and processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import info_nce
from clip_negatives.host import registry
from clip_negatives.integrations.open_clip.hand_over import CurrentSamples
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from tests import ranks
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
    value = loss(x, y, torch.tensor(SCALE, dtype=torch.float64), samples=BatchSamples(ids=BATCHES[number][part]))
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
    """With an exact u and all samples in one batch, the gradient is that of log g: InfoNCE without the positive in the sum."""
    x, y = features(B, 4)
    found = gradients(
        loss_of("sogclr:gamma=1.0")(x, y, torch.tensor(SCALE, dtype=torch.float64), samples=BatchSamples(ids=BATCHES[0])), x, y
    )
    logits, own = SCALE * x @ y.T, torch.eye(B, dtype=torch.bool)
    log_g = [z.masked_fill(own, -torch.inf).logsumexp(1) - z.diagonal() for z in (logits, logits.T)]
    expected = gradients(torch.cat(log_g).mean() / SCALE, x, y)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_glofnd_finds_the_share():
    """After many steps, the share alpha of the negatives is above the threshold."""
    n = 200
    loss = NegativesClipLoss(terms=registry.create("loss_weighting", "glofnd:alpha=0.1,lr=0.01")(make_clusters(n, 6, 5)))
    x, y = (side.detach() for side in features(n, 6))
    for _ in range(400):
        loss(x, y, torch.tensor(SCALE, dtype=torch.float64), samples=BatchSamples(ids=torch.arange(n)))
    above = (x @ y.T > loss.anchor_loss.image_threshold[:, None].double()).fill_diagonal_(False).double().mean(1)
    assert float(above.mean()) == pytest.approx(0.1, abs=0.02)
    # The loss is InfoNCE over the other negatives.
    threshold = {"image": loss.anchor_loss.image_threshold.clone(), "text": loss.anchor_loss.text_threshold.clone()}
    found = loss(x, y, torch.tensor(SCALE, dtype=torch.float64), samples=BatchSamples(ids=torch.arange(n)))
    kept = [
        z.masked_fill((z > threshold[name][:, None]) & ~torch.eye(n, dtype=torch.bool), -torch.inf)
        for name, z in (("image", x @ y.T), ("text", (x @ y.T).T))
    ]
    expected = sum(torch.nn.functional.cross_entropy(SCALE * z, torch.arange(n)) for z in kept) / 2
    assert found.item() == pytest.approx(expected.item(), rel=0.02)  # thresholds have moved by one step


@pytest.mark.parametrize(("alpha", "lr", "after"), [(0.2, 0.05, 1), (0.01, 0.05, 3)])
def test_glofnd_by_loops(alpha, lr, after):
    """A step of Adam for each anchor, by hand, in float64."""
    loss = loss_of(f"glofnd:alpha={alpha},lr={lr},after={after}")
    state = {name: [{"l": 1.0, "m": 0.0, "v": 0.0, "t": 0} for _ in range(N)] for name in ("image", "text")}
    dropped = 0
    for number in range(3 * len(BATCHES)):
        batch = BATCHES[number % len(BATCHES)]
        x, y = (side.detach() for side in features(B, 4, seed=number))
        found, total = float(loss(x, y, torch.tensor(SCALE, dtype=torch.float64), samples=BatchSamples(ids=batch))), 0.0
        for name, s in (("image", (x @ y.T).tolist()), ("text", (y @ x.T).tolist())):
            for i in range(B):
                one, others = state[name][int(batch[i])], [j for j in range(B) if j != i]
                slope = alpha - sum(s[i][j] > one["l"] for j in others) / (B - 1)
                one["t"] += 1
                one["m"] = 0.9 * one["m"] + 0.1 * slope
                one["v"] = 0.98 * one["v"] + 0.02 * slope**2
                way = one["m"] / (1 - 0.9 ** one["t"]) / (math.sqrt(one["v"] / (1 - 0.98 ** one["t"])) + 1e-8)
                one["l"] = min(max(one["l"] - lr * way, -1.0), 1.0)
                kept = [j for j in others if one["t"] <= after or s[i][j] <= one["l"]]
                dropped += len(others) - len(kept)
                total += math.log(sum(math.exp(SCALE * (s[i][j] - s[i][i])) for j in [i, *kept]))
        assert found == pytest.approx(total / (2 * B), rel=1e-6)
    assert dropped > 50
    for name, each in state.items():
        assert getattr(loss.anchor_loss, f"{name}_threshold").tolist() == pytest.approx([one["l"] for one in each], abs=1e-5)


class Counting(AnchorLoss):
    """A third-party loss that counts its calls, in all and for each sample, and adds both counts to the loss."""

    def __init__(self):
        super().__init__()
        self.n_samples = N
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(N))

    def forward(self, anchors):
        self.calls += 1
        seen = self.seen[anchors.samples.index] + 0.5  # half for images, half for texts
        anchors.remember(self.seen, seen)
        return info_nce(anchors) + seen + self.calls


def parts_of_windows(loss, window):
    """Call a loss as open_clip does with --accum-freq: once for each batch of a window, always with all features."""
    found = []
    for start in range(0, len(BATCHES), window):
        for number in range(start, start + window):
            loss.batch_samples.push(BatchSamples(ids=BATCHES[number]))
        x, y = (torch.cat(sides) for sides in zip(*(features(B, 4, seed=n) for n in range(start, start + window)), strict=True))
        found.append([loss(x, y, torch.tensor(SCALE, dtype=torch.float64)).detach() for _ in range(window)])
    return found


@pytest.mark.parametrize("spec", [*STATEFUL, "swap", None])
def test_state_moves_on_once_a_window(spec):
    """All calls for one window read the state from before it; the window updates the state once."""
    terms = (lambda: Counting()) if spec is None else (lambda: registry.create("loss_weighting", spec)(make_clusters(N, 6, 5)))
    often = NegativesClipLoss(terms=terms(), batch_samples=CurrentSamples(2))
    once = NegativesClipLoss(terms=terms())
    for number, values in enumerate(parts_of_windows(often, 2)):
        sides = zip(*(features(B, 4, seed=n) for n in (2 * number, 2 * number + 1)), strict=True)
        index = torch.cat(BATCHES[2 * number : 2 * number + 2])
        expected = once(
            *(torch.cat(side) for side in sides), torch.tensor(SCALE, dtype=torch.float64), samples=BatchSamples(ids=index)
        )
        assert [float(value) for value in values] == [expected.item()] * 2
    state = once.anchor_loss.state_dict()
    for name, buffer in often.anchor_loss.state_dict().items():
        torch.testing.assert_close(buffer, state[name], rtol=0, atol=0)


def test_a_loop_that_gives_the_samples_says_so_itself():
    x, y = features(B, 4)
    loss = NegativesClipLoss(terms=Counting())
    for again in (False, True, None, True):
        loss(x, y, torch.tensor(SCALE), samples=BatchSamples(ids=BATCHES[0]), again=again)
    assert loss.anchor_loss.seen[BATCHES[0]].tolist() == [2.0] * B
    assert int(loss.anchor_loss.calls) == 4


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


def _process(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), {}
    for spec in (*STATEFUL, "llave:alpha=2.0", "weight", "siglip", "swap"):
        for local_loss in (False, True):
            how = {"local_loss": local_loss, "gather_with_grad": True, "rank": rank, "world_size": 2}
            loss = loss_of(spec, **how)
            part = slice(rank * B // 2, (rank + 1) * B // 2)
            results = [step(loss, number, part) for number in range(5)]
            found[spec, local_loss] = [value.detach() for value, _ in results], results[-1][1], loss.state_dict()
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_as_one(tmp_path):
    ranks.run(2, _process, tmp_path, log=tmp_path / "log")
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for (spec, local_loss), (values, slopes, state) in parts[0].items():
        other_values, other_slopes, other_state = parts[1][spec, local_loss]
        one = loss_of(spec)
        results = [step(one, number) for number in range(5)]
        for number, (value, _) in enumerate(results):
            mean = (values[number] + other_values[number]) / 2
            torch.testing.assert_close(mean, value.detach(), msg=f"{spec}, local_loss={local_loss}, step {number}")
        # DDP averages the gradients over processes.
        together = [torch.cat(pair) / 2 for pair in zip(slopes, other_slopes, strict=True)]
        for found, expected in zip(together, results[-1][1], strict=True):
            torch.testing.assert_close(found, expected)
        for name, buffer in one.state_dict().items():
            if torch.is_tensor(buffer):
                torch.testing.assert_close(state[name], buffer)
                torch.testing.assert_close(other_state[name], buffer)
