"""Extra texts and extra images against the formula, written in float64 plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.losses.functional import Extras, weighted_info_nce
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives.terms import LossTerms
from tests.info_nce import BACKENDS, features, gradients, weights

N, D, SCALE = 6, 4, torch.tensor(5.0, dtype=torch.float64)
BIAS = torch.tensor(-1.0, dtype=torch.float64)


def extra(n: int, seed: int = 3) -> Tensor:
    return features(n, D, seed)[1].detach().requires_grad_()


def directed(own: Tensor, others: Tensor, negative: Tensor, positive: Tensor, log_weight: float) -> Tensor:
    """Return the loss of each anchor: logits of the own modality (n, n), of the extras (n, m), and masks of the extras."""
    n = len(own)
    positives = torch.cat([torch.eye(n, dtype=torch.bool), positive], dim=1)
    negatives = torch.cat([~torch.eye(n, dtype=torch.bool), negative], dim=1)
    logits = torch.cat([own, others], dim=1)
    weight = torch.cat([torch.zeros(n), torch.full((others.shape[1],), log_weight)]).double()
    counted = (logits + weight).masked_fill(~negatives, -torch.inf)
    counted = counted.masked_fill(positives, 0.0) + logits.masked_fill(~positives, 0.0)
    counted = counted.masked_fill(~(negatives | positives), -torch.inf)
    return counted.logsumexp(1) - (logits * positives).sum(1) / positives.sum(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("log_weight", [0.0, -1.5, 0.7, -torch.inf])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_loss_is_that_of_the_formula(backend: str, log_weight: float, k: int) -> None:
    """K positive texts for each sample, or with k = 0 five extra texts as negatives, and seven extra images."""
    (x, y), texts, images = features(N, D), extra(k * N or 5), extra(7, 4)
    ids, text_ids, image_ids = torch.arange(N), torch.arange(2, 2 + len(texts)), torch.arange(-2, 5)
    owner = torch.arange(N).repeat_interleave(k) if k else torch.full((5,), -1)
    own = torch.arange(N)[:, None] == owner
    z = SCALE * x @ y.T + BIAS
    z_texts, z_images = SCALE * x @ texts.T + BIAS, SCALE * y @ images.T + BIAS
    none = torch.zeros(N, 7, dtype=torch.bool)
    by_image = directed(z, z_texts, ~own & (ids[:, None] != text_ids), own, log_weight)
    by_text = directed(z.T, z_images, ids[:, None] != image_ids, none, log_weight)
    expected = (by_image.mean() + by_text.mean()) / 2
    more = {
        "extra_texts": Extras(texts, ids, text_ids, log_weight, k > 0),
        "extra_images": Extras(images, ids, image_ids, log_weight),
    }
    found = weighted_info_nce(x, y, SCALE, BIAS, **more, backend=backend, chunk_size=3)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, x, y, texts, images), gradients(expected, x, y, texts, images), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_for_texts_are_texts_for_images(backend: str) -> None:
    """With all treatments: swapping the modalities changes nothing."""
    (x, y), more = features(N, D), extra(7)
    terms = weights(N, normalize=True).replace(margin=0.3, hardness=0.5)
    ids = torch.arange(N), torch.arange(1, 8)
    options = {"terms": terms, "backend": backend, "chunk_size": 3}
    found = weighted_info_nce(x, y, SCALE, extra_images=Extras(more, *ids, -0.5), **options)
    options["terms"] = terms.transposed()
    expected = weighted_info_nce(y, x, SCALE, extra_texts=Extras(more, *ids, -0.5), **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("attract", [True, False])
def test_positive_texts_with_groups(backend: str, attract: bool) -> None:
    """Positive texts of a sample of the same group are positives too, or are left out, like the samples of the group."""
    (x, y), texts, groups = features(N, D), extra(2 * N), torch.tensor([0, 0, 1, 2, 2, 2])
    terms = LossTerms(groups=groups, attract=attract)
    found = weighted_info_nce(x, y, SCALE, terms=terms, extra_texts=Extras(texts, positive=True), backend=backend)
    z, z_texts = SCALE * x @ y.T, SCALE * x @ texts.T
    mates, eye = groups[:, None] == groups, torch.eye(N, dtype=torch.bool)

    def side(logits: Tensor, positive: Tensor, kept: Tensor) -> Tensor:
        total = logits.masked_fill(~(kept | positive), -torch.inf).logsumexp(1)
        return total - (logits * positive).sum(1) / positive.sum(1)

    mates_of_texts, own = mates.repeat_interleave(2, dim=1), eye.repeat_interleave(2, dim=1)
    positive = torch.cat([mates, mates_of_texts] if attract else [eye, own], dim=1)
    by_image = side(torch.cat([z, z_texts], dim=1), positive, torch.cat([~mates, ~mates_of_texts], dim=1))
    by_text = side(z.T, mates if attract else eye, ~mates)
    torch.testing.assert_close(found, (by_image.mean() + by_text.mean()) / 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("terms", [None, weights(N, normalize=True)], ids=["unweighted", "weighted"])
def test_log_weight_of_minus_inf_is_no_extra_texts(backend: str, terms: LossTerms | None) -> None:
    x, y = features(N, D)
    found = weighted_info_nce(x, y, SCALE, terms=terms, extra_texts=Extras(extra(5), log_weight=-torch.inf), backend=backend)
    torch.testing.assert_close(found, weighted_info_nce(x, y, SCALE, terms=terms, backend=backend))


def test_log_weight_moves_all_extra_weights() -> None:
    """Normalised weights have mean 1 over the samples and the extras, with the log-weight of the extras."""
    (x, y), more = features(N, D), extra(5)
    terms = LossTerms(normalize=True, image_labels=torch.zeros(N, dtype=torch.int64), image_table=torch.zeros(1, 1))
    found = weighted_info_nce(x, y, SCALE, terms=terms, extra_texts=Extras(more, log_weight=1.0), text_anchors=False)
    w = torch.cat([torch.ones(N, N) - torch.eye(N), torch.full((N, 5), 1.0).exp()], dim=1).double()
    w = w / w.sum(1, keepdim=True) * (N - 1 + 5)
    w[torch.arange(N), torch.arange(N)] = 1.0
    z = SCALE * x @ torch.cat([y, more]).T
    expected = ((z.exp() * w).sum(1).log() - z.diagonal()).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extra_texts": Extras(extra(5), positive=True)}, "the same number for each sample"),
        ({"extra_images": Extras(extra(N), positive=True)}, "Only extra texts can be positive"),
        ({"extra_texts": Extras(extra(5), log_weight=torch.nan)}, "log_weight must be a number below inf"),
        ({"extra_texts": Extras(extra(5), log_weight=torch.inf)}, "log_weight must be a number below inf"),
        ({"extra_images": Extras(extra(5)), "text_anchors": False}, "need text_anchors=True"),
        ({"extra_images": Extras(extra(5).float())}, "Features of extra images"),
        ({"extra_images": Extras(extra(5)), "ring": True}, "no extra texts or images"),
    ],
)
def test_what_cannot_be_is_an_error(options: dict[str, object], words: str) -> None:
    if "ring" in options:
        words = "no candidates and no extra texts or images"
    with pytest.raises(InputError, match=words):
        weighted_info_nce(*features(N, D), SCALE, **options)


def batch() -> tuple[Tensor, Tensor, BatchSamples]:
    """Return images and texts with two added images and one added text each, and their samples."""
    x, y = features(3 * N, D)[0].detach(), features(2 * N, D, 1)[1].detach()
    return (
        x,
        y,
        BatchSamples(ids=torch.arange(N), text_ids=torch.randint(5, (N, 4), generator=torch.Generator().manual_seed(0))),
    )


def test_module_splits_images_and_texts() -> None:
    x, y, samples = batch()
    loss = NegativesClipLoss(extra_texts=1, extra_images=2, positive_texts=True, extra_log_weight=-0.5)
    ids = samples.text_ids
    texts = Extras(y[1::2], ids[:, 0], ids[:, 1], -0.5, True)
    images = Extras(x.view(N, 3, D)[:, 1:].flatten(0, 1), ids[:, 0], ids[:, 2:].flatten(), -0.5)
    expected = weighted_info_nce(x[::3], y[::2], SCALE, extra_texts=texts, extra_images=images)
    assert torch.equal(loss(x, y, SCALE, samples=samples), expected)
    assert torch.equal(loss.eval()(x, y, SCALE, samples=samples), expected)
    torch.testing.assert_close(loss(x[::3], y[::2], SCALE), weighted_info_nce(x[::3], y[::2], SCALE))
    with pytest.raises(InputError, match="6 images with 2 added images each need 18 image features, got 20"):
        loss.train()(torch.cat([x, x[:2]]), y, SCALE, samples=samples)
    with pytest.raises(InputError, match=r"text_ids of 6 features must be int64 of shape \(6, 4\)"):
        loss(x, y, SCALE, samples=BatchSamples(ids=samples.ids, text_ids=ids[:, :2]))


def test_features_of_any_strides() -> None:
    x, y, samples = batch()
    loss = NegativesClipLoss(extra_texts=1, extra_images=2)
    strided = (side.T.contiguous().T for side in (x, y))
    torch.testing.assert_close(loss(*strided, SCALE, samples=samples), loss(x, y, SCALE, samples=samples))


def test_evaluation_of_as_many_images_as_texts() -> None:
    """With samples, a batch with additions is told from a plain batch; without them it is a plain batch."""
    x, y, samples = batch()[0][: 2 * N], *batch()[1:]
    loss = NegativesClipLoss(extra_texts=1, extra_images=1).eval()
    plain = weighted_info_nce(x[::2], y[::2], SCALE, extra_texts=Extras(y[1::2]), extra_images=Extras(x[1::2]))
    torch.testing.assert_close(loss(x, y, SCALE, samples=BatchSamples(ids=samples.ids)), plain)
    torch.testing.assert_close(loss(x, y, SCALE), weighted_info_nce(x, y, SCALE))
    torch.testing.assert_close(loss(x[:N], y[:N], SCALE, samples=samples), weighted_info_nce(x[:N], y[:N], SCALE))


def test_images_alone_reach_the_loss_with_the_ids_of_their_texts() -> None:
    x, y, samples = batch()
    ids = samples.text_ids[:, [0, 2, 3]]
    loss = NegativesClipLoss(extra_images=2, batch_samples=lambda: BatchSamples(ids=samples.ids, text_ids=ids))
    images = Extras(x.view(N, 3, D)[:, 1:].flatten(0, 1), ids[:, 0], ids[:, 1:].flatten())
    assert torch.equal(loss(x, y[:N], SCALE), weighted_info_nce(x[::3], y[:N], SCALE, extra_images=images))


def test_concatenated_batches_are_one_batch() -> None:
    """As in gradient accumulation."""
    x, y, samples = batch()
    loss = NegativesClipLoss(extra_texts=1, extra_images=2)
    halves = [BatchSamples(*(part[half] for part in samples)) for half in (slice(0, 3), slice(3, 6))]
    halves = [BatchSamples(ids=half.ids, text_ids=half.labels) for half in halves]
    assert torch.equal(loss(x, y, SCALE, samples=BatchSamples.concatenate(halves)), loss(x, y, SCALE, samples=samples))


def test_ring_and_anchor_losses_say_that_they_cannot() -> None:
    class Plain(AnchorLoss):
        def forward(self, anchors: object) -> Tensor:
            return torch.zeros(1)

    with pytest.raises(UnsupportedError, match=r"adds captions or images\. Leave ring out"):
        NegativesClipLoss(extra_images=1, ring=True)
    with pytest.raises(UnsupportedError, match="does not work with a sampler that adds images"):
        NegativesClipLoss(extra_images=1, terms=Plain())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", ["normalize", "margin", "positive_rate", "hardness"])
def test_gradients_with_positive_texts_without_ids(backend: str, which: str) -> None:
    """One block of pairs, which the chunked backend keeps for the backward pass, without log-weights of the extra texts."""
    x, y = features(6, 4)
    extra = features(6, 4, seed=1)[0]
    terms = LossTerms(image_labels=torch.arange(6) % 2, image_table=torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), normalize=True)
    treatments = {"margin": 0.1, "positive_rate": torch.tensor(0.1), "hardness": 0.5}
    terms = terms if which == "normalize" else terms.replace(**{which: treatments[which]})

    def loss(x: Tensor, y: Tensor, extra: Tensor) -> Tensor:
        return weighted_info_nce(x, y, 10.0, terms=terms, extra_texts=Extras(extra, positive=True), backend=backend)

    assert torch.autograd.gradcheck(loss, (x, y, extra))
