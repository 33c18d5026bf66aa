"""The loss, and the metrics, of two processes against open_clip's under the same ranks and against one process.

Both processes are started once for all tests: they write what they found into a file each.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from open_clip import ClipLoss

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.losses.functional import Candidates, Extras, weighted_info_nce
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.metrics import FalseNegatives, RankAtK
from clip_negatives.step import BatchSamples
from tests.info_nce import BACKENDS, features, gradients, weights
from tests.ranks import run

WORLD, B, D, N = 2, 5, 4, 20
MODES = list(itertools.product([False, True], repeat=2))
INDEX = torch.randperm(N, generator=torch.Generator().manual_seed(4))[: WORLD * B]
TEXTS = torch.randint(9, (WORLD * B, 3), generator=torch.Generator().manual_seed(5))
ALL_TEXTS = torch.cat([TEXTS, torch.randint(9, (WORLD * B, 2), generator=torch.Generator().manual_seed(6))], dim=1)
GROUPS = torch.arange(WORLD * B) // 3


def _part(rank):
    return slice(rank * B, (rank + 1) * B)


def _leaves(rank, dtype):
    x, y = (side.detach()[_part(rank)].clone().requires_grad_() for side in features(WORLD * B, D, dtype=dtype))
    return x, y, torch.tensor(5.0, dtype=dtype, requires_grad=True)


def _run(loss, dtype, rank, **options):
    inputs = _leaves(rank, dtype)
    value = loss(*inputs, **options)
    return [value.detach(), *gradients(value, *inputs)]


def _process(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), {}
    for local_loss, with_grad in MODES:
        how = {"local_loss": local_loss, "gather_with_grad": with_grad, "rank": rank, "world_size": WORLD}
        found["open_clip", local_loss, with_grad] = _run(ClipLoss(**how), torch.float32, rank)
        for backend in BACKENDS:
            neutral = NegativesClipLoss(**how, backend=backend)
            found["neutral", backend, local_loss, with_grad] = _run(neutral, torch.float32, rank)
            for normalize in (False, True):
                weighted = NegativesClipLoss(**how, terms=weights(N, normalize=normalize), backend=backend, chunk_size=3)
                result = _run(weighted, torch.float64, rank, samples=BatchSamples(ids=INDEX[_part(rank)]))
                found["weighted", backend, normalize, local_loss, with_grad] = result
        extra = NegativesClipLoss(**how, terms=weights(N, normalize=True), extra_texts=2)
        found["extra", local_loss, with_grad] = _run_extra(extra, rank)
        more = {"extra_texts": 2, "extra_images": 2, "positive_texts": True, "extra_log_weight": -0.5}
        extras = NegativesClipLoss(**how, terms=weights(N, normalize=True), **more, backend="chunked", chunk_size=3)
        found["extras", local_loss, with_grad] = _run_extra(extras, rank, images=True)
    found["random"] = _random_parameters(rank)
    found["metrics"] = _metrics(_part(rank))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _with_extra():
    """Return features of all images, and of all texts with two more behind each."""
    images, texts = features(WORLD * B, D)
    extra = features(2 * WORLD * B, D, seed=9)[1].detach().view(WORLD * B, 2, D)
    return images.detach(), torch.cat([texts.detach()[:, None], extra], dim=1)


def _with_extra_images():
    """Return features of all images with two more behind each, and those of `_with_extra` of all texts."""
    images, texts = _with_extra()
    extra = features(2 * WORLD * B, D, seed=10)[0].detach().view(WORLD * B, 2, D)
    return torch.cat([images[:, None], extra], dim=1), texts


def _run_extra(loss, rank, images=False):
    sides = _with_extra_images() if images else _with_extra()
    x, y = (side[_part(rank)].clone().requires_grad_() for side in sides)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    text_ids = (ALL_TEXTS if images else TEXTS)[_part(rank)]
    samples = BatchSamples(ids=INDEX[_part(rank)], text_ids=text_ids)
    value = loss(x.flatten(0, -2), y.flatten(0, 1), scale, samples=samples)
    return [value.detach(), *gradients(value, x, y)]


class _Random(AnchorLoss):
    """A loss with parameters and buffers that are random in each process, one of them frozen."""

    def __init__(self):
        super().__init__()
        self.factor, self.frozen = torch.nn.Parameter(torch.rand(())), torch.nn.Parameter(torch.rand(2), requires_grad=False)
        self.register_buffer("kept", torch.rand(3) > 0.5)

    def forward(self, anchors):
        return self.factor * anchors.logits.logsumexp(1) * self.frozen.sum() - anchors.positive


def _random_parameters(rank):
    """Return the state before and after two steps, and the gradients; the second step trains the frozen parameter too."""
    torch.manual_seed(rank)
    loss = NegativesClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=WORLD, terms=_Random())
    before = [value.clone() for value in loss.anchor_loss.state_dict().values()]
    samples = BatchSamples(ids=INDEX[_part(rank)])
    loss(*_leaves(rank, torch.float32), samples=samples).backward()
    loss.anchor_loss.frozen.requires_grad_(True)
    loss(*_leaves(rank, torch.float32), samples=samples).backward()
    return before, list(loss.anchor_loss.state_dict().values()), [part.grad for part in loss.anchor_loss.parameters()]


def _metrics(part):
    """Return both metrics over `part` of the samples; in several processes they synchronise by themselves."""
    false, ranks = FalseNegatives(), RankAtK(top_k=(1, 2))
    image, text = features(WORLD * B, D)
    false.update(GROUPS[part])
    ranks.update(image.detach()[part], text.detach()[part], GROUPS[part])
    return ranks.compute(), false.compute()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run(WORLD, _process, folder, log=folder / "log")
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_random_parameters_begin_and_stay_equal_on_all_processes(found):
    (before, after, gradient), (other_before, other_after, other_gradient) = (part["random"] for part in found)
    assert not torch.equal(before[0], other_before[0])
    assert all(map(torch.equal, after, before))
    assert all(map(torch.equal, other_after, before))
    assert all(map(torch.equal, gradient, other_gradient))


@pytest.mark.parametrize(("local_loss", "with_grad"), MODES)
def test_neutral_terms_give_open_clips_loss_to_the_bit_on_every_rank(found, local_loss, with_grad):
    for rank in range(WORLD):
        theirs = found[rank]["open_clip", local_loss, with_grad]
        assert all(map(torch.equal, found[rank]["neutral", "torch", local_loss, with_grad], theirs))
        for one, other in zip(found[rank]["neutral", "chunked", local_loss, with_grad], theirs, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("local_loss", "with_grad"), MODES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weighted_loss_is_that_of_one_process(found, backend, normalize, local_loss, with_grad):
    results = [found[rank]["weighted", backend, normalize, local_loss, with_grad] for rank in range(WORLD)]
    expected = [_one_process(rank, normalize, local_loss, with_grad) for rank in range(WORLD)]
    for ours, theirs in zip(results, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("local_loss", "with_grad"), MODES)
def test_extra_texts_of_all_processes_are_contrasted(found, local_loss, with_grad):
    x, y = (side.requires_grad_() for side in _with_extra())
    terms = weights(N, normalize=True).take(INDEX)
    extra = Extras(y[:, 1:].flatten(0, 1), TEXTS[:, 0], TEXTS[:, 1:].flatten())
    whole = weighted_info_nce(x, y[:, 0], 5.0, terms=terms, extra_texts=extra)
    results = [found[rank]["extra", local_loss, with_grad] for rank in range(WORLD)]
    torch.testing.assert_close(torch.stack([value for value, *_ in results]).mean(), whole.detach())
    if with_grad:
        for place, gradient in enumerate(gradients(whole, x, y), start=1):
            torch.testing.assert_close(torch.cat([each[place] for each in results]), WORLD * gradient)


@pytest.mark.parametrize(("local_loss", "with_grad"), MODES)
def test_positive_texts_and_extra_images_of_all_processes_are_contrasted(found, local_loss, with_grad):
    x, y = (side.requires_grad_() for side in _with_extra_images())
    terms = weights(N, normalize=True).take(INDEX)
    texts = Extras(y[:, 1:].flatten(0, 1), ALL_TEXTS[:, 0], ALL_TEXTS[:, 1:3].flatten(), -0.5, True)
    images = Extras(x[:, 1:].flatten(0, 1), ALL_TEXTS[:, 0], ALL_TEXTS[:, 3:].flatten(), -0.5)
    whole = weighted_info_nce(x[:, 0], y[:, 0], 5.0, terms=terms, extra_texts=texts, extra_images=images)
    results = [found[rank]["extras", local_loss, with_grad] for rank in range(WORLD)]
    torch.testing.assert_close(torch.stack([value for value, *_ in results]).mean(), whole.detach())
    if with_grad:
        for place, gradient in enumerate(gradients(whole, x, y), start=1):
            torch.testing.assert_close(torch.cat([each[place] for each in results]), WORLD * gradient)


def _one_process(rank, normalize, local_loss, with_grad):
    """Return what a rank should find: loss, gradients to its features and to the scale."""
    (x, y), scale = features(WORLD * B, D), torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    terms = weights(N, normalize=normalize).take(INDEX)
    whole = weighted_info_nce(x, y, scale, terms=terms, backend="torch")
    whole_x, whole_y, whole_scale = gradients(whole, x, y, scale)
    part = _part(rank)

    def rows(all_x, all_y):
        own, candidates = terms.take(torch.arange(WORLD * B)[part]), Candidates(all_x, all_y, terms, rank * B)
        return weighted_info_nce(x[part], y[part], scale, terms=own, candidates=candidates, backend="torch")

    # Where gradients are gathered, every process adds its own: world size times that of the mean, as in open_clip.
    times = WORLD if with_grad else 1
    value, to_scale = whole, whole_scale
    if local_loss:
        value = rows(x, y)
        to_scale = gradients(value, scale)[0]
        if not with_grad:
            whole_x, whole_y = gradients(rows(x.detach(), y.detach()), x, y)
    return [value.detach(), times * whole_x[part], times * whole_y[part], to_scale]


def test_metrics_are_those_of_one_process(found):
    expected_ranks, _ = _metrics(slice(None))
    halves = [_metrics(_part(rank))[1] for rank in range(WORLD)]
    for rank in range(WORLD):
        ranks, false = found[rank]["metrics"]
        assert ranks == expected_ranks
        assert false["batches"] == WORLD
        torch.testing.assert_close(false["per_anchor"], sum(half["per_anchor"] for half in halves) / WORLD)
