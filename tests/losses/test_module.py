"""The loss as a module, in one process."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from open_clip import ClipLoss

from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.interfaces import LossTerms
from clip_negatives.losses.functional import weighted_info_nce
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from tests.info_nce import BACKENDS, features, gradients, loss_of, weights

INDEX = torch.tensor([9, 2, 2, 17])
SAMPLES = BatchSamples(ids=INDEX)


def test_constructor_and_call_are_those_of_open_clip():
    for ours, theirs in ((NegativesClipLoss, ClipLoss), (NegativesClipLoss.forward, ClipLoss.forward)):
        ours, theirs = inspect.signature(ours).parameters.values(), inspect.signature(theirs).parameters.values()
        shared = [p for p in ours if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        assert [(p.name, p.default) for p in shared] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("terms", [None, LossTerms()])
def test_neutral_terms_give_open_clips_loss_and_need_no_index(terms):
    x, y = features(16, 8, dtype=torch.float32)
    scale = torch.tensor(14.3, requires_grad=True)
    theirs, ours = ClipLoss()(x, y, scale), NegativesClipLoss(terms=terms)(x, y, scale)
    assert torch.equal(theirs, ours)
    assert all(map(torch.equal, gradients(theirs, x, y, scale), gradients(ours, x, y, scale)))
    assert NegativesClipLoss().state_dict().keys() == {"_extra_state"}


def test_output_dict_has_the_one_key_that_the_loop_adds_up():
    x, y = features(4, 8)
    found = NegativesClipLoss()(image_features=x, text_features=y, logit_scale=torch.tensor(9.0), output_dict=True)
    assert list(found) == ["contrastive_loss"]


@pytest.mark.parametrize("backend", ["torch", "chunked"])
def test_terms_are_looked_up_by_the_index_given_or_asked_for(backend):
    x, y = features(4, 8)
    terms = weights(20, normalize=True)
    expected = weighted_info_nce(x, y, 9.0, -1.0, terms=terms.take(INDEX))
    given = NegativesClipLoss(terms=terms, backend=backend, chunk_size=3)
    asked = NegativesClipLoss(terms=terms, batch_samples=lambda: SAMPLES, backend=backend)
    torch.testing.assert_close(given(x, y, 9.0, -1.0, samples=SAMPLES), expected)
    torch.testing.assert_close(given(x, y, 9.0, -1.0, samples=BatchSamples(ids=INDEX.int())), expected)
    torch.testing.assert_close(asked(x, y, 9.0, -1.0), expected)


def test_a_given_index_goes_before_the_one_asked_for():
    x, y = features(4, 8)
    terms = weights(20)
    loss = NegativesClipLoss(terms=terms, batch_samples=lambda: pytest.fail("asked although samples were given"))
    torch.testing.assert_close(loss(x, y, 9.0, samples=SAMPLES), weighted_info_nce(x, y, 9.0, terms=terms.take(INDEX)))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, r"needs the sample ids of the batch, and there are none. Give loss\(..., samples=BatchSamples\(ids=ids\)\)"),
        (INDEX[:3], r"features are of 4 samples, samples= are 3\. Pass those of the same batch"),
        (INDEX[:, None], r"got torch.int64 of shape \(4, 1\)"),
        (INDEX.float(), "got torch.float32"),
        (INDEX + 3, r"within 0 .. 19, the samples that were clustered, got 5 .. 20"),
        (INDEX - 3, r"got -1 .. 14"),
    ],
)
def test_refuses_an_index_that_does_not_fit(index, message):
    x, y = features(4, 8)
    with pytest.raises(InputError, match=message):
        NegativesClipLoss(terms=weights(20))(x, y, 9.0, samples=BatchSamples(ids=index))


def test_refuses_horovod():
    with pytest.raises(UnsupportedError, match=r"Horovod is not supported\. Start the training with torchrun"):
        NegativesClipLoss(use_horovod=True)


def test_terms_can_be_exchanged_after_reclustering():
    x, y = features(4, 8)
    loss, first, second = (
        NegativesClipLoss(terms=weights(20)),
        weights(20),
        weights(20, k=5, seed=1, parts="t", normalize=True),
    )
    loss.set_terms(second)
    torch.testing.assert_close(loss(x, y, 9.0, samples=SAMPLES), weighted_info_nce(x, y, 9.0, terms=second.take(INDEX)))
    assert set(loss.state_dict()) == {"text_labels", "text_table", "_extra_state"}
    loss.set_terms(LossTerms())
    torch.testing.assert_close(loss(x, y, 9.0), weighted_info_nce(x, y, 9.0))
    loss.set_terms(first)
    torch.testing.assert_close(loss(x, y, 9.0, samples=SAMPLES), weighted_info_nce(x, y, 9.0, terms=first.take(INDEX)))


@pytest.mark.parametrize("into", [None, LossTerms()], ids=["none", "neutral"])
@pytest.mark.parametrize("parts", ["", "i", "itf"])
def test_state_goes_through_a_file_into_a_loss_built_with_other_terms(into, parts):
    terms = weights(20, parts=parts, normalize=True) if parts else LossTerms(normalize=True)
    stored = io.BytesIO()
    torch.save(NegativesClipLoss(terms=terms).state_dict(), stored)
    stored.seek(0)
    loaded = NegativesClipLoss(terms=into)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    for name in LossTerms.__dataclass_fields__:
        one, other = getattr(loaded.terms, name), getattr(terms, name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_state_of_a_loss_inside_a_module():
    outer = torch.nn.ModuleDict({"loss": NegativesClipLoss(terms=weights(20))})
    loaded = torch.nn.ModuleDict({"loss": NegativesClipLoss()})
    loaded.load_state_dict(outer.state_dict())
    assert torch.equal(loaded["loss"].terms.factors, outer["loss"].terms.factors)


def test_the_state_of_something_else_leaves_the_terms_alone():
    loss = NegativesClipLoss(terms=weights(20))
    with pytest.raises(RuntimeError, match="Missing key"):
        loss.load_state_dict({})
    loss.load_state_dict({}, strict=False)
    assert torch.equal(loss.terms.factors, weights(20).factors)


def test_terms_move_with_the_module_and_are_copied_with_it():
    loss = NegativesClipLoss(terms=weights(20))
    assert copy.deepcopy(loss).terms.image_labels.tolist() == loss.terms.image_labels.tolist()
    assert {tensor.device.type for tensor in loss.to("meta").buffers()} == {"meta"}
    assert not list(loss.parameters())


def test_terms_on_another_device_follow_the_features():
    x, y = features(4, 8)
    terms = weights(20)
    loss = NegativesClipLoss(terms=terms)
    found = loss(x.to("meta"), y.to("meta"), torch.tensor(9.0), samples=SAMPLES)
    assert found.device.type == "meta"
    assert loss.image_table.device.type == "meta"
    assert loss.image_labels.device.type == "cpu"


@pytest.mark.parametrize("backend", BACKENDS)
def test_terms_may_ask_for_every_treatment(backend):
    n = 12
    data = weights(n, normalize=True)
    live = {"groups": torch.arange(n) % 5, "positive_rate": torch.linspace(0, 0.2, n), "hardness": 0.5, "margin": 0.2}
    index = torch.tensor([7, 2, 9, 4, 0])
    x, y = features(5, 4)
    scale = torch.tensor(5.0, dtype=torch.float64)
    loss = NegativesClipLoss(terms=data.replace(**live), backend=backend)
    expected = weighted_info_nce(x, y, scale, terms=data.replace(**live).take(index), backend=backend)
    torch.testing.assert_close(loss(x, y, scale, samples=BatchSamples(ids=index)), expected)
    other = NegativesClipLoss(backend=backend)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(x, y, scale, samples=BatchSamples(ids=index)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph_with_the_index_of_a_loader(backend):
    x, y = features(4, 8)
    loss = NegativesClipLoss(terms=weights(20, normalize=True), backend=backend)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y, 9.0, samples=SAMPLES), loss(x, y, 9.0, samples=SAMPLES))


def test_terms_that_belong_to_no_sample_need_no_index():
    x, y = features(5, 4)
    scale = torch.tensor(5.0, dtype=torch.float64)
    loss = NegativesClipLoss(terms=LossTerms(hardness=0.5, positive_rate=torch.tensor(0.1)))
    torch.testing.assert_close(loss(x, y, scale), loss_of(x, y, scale, hardness=0.5, positive_rate=torch.tensor(0.1)))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (LossTerms(positive_rate=0.1), "terms.positive_rate must be a tensor"),
        (weights(20).replace(text_labels=INDEX), "terms.text_labels has 4 samples"),
        (weights(20).replace(image_table=torch.tensor(1.0)), "terms.image_table must have shape"),
    ],
)
def test_terms_of_a_data_set_are_checked_when_they_are_set(terms, message):
    with pytest.raises(InputError, match=message):
        NegativesClipLoss(terms=terms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_table": torch.full((3, 3), 1e38)},
            r"terms\.image_table must be within -10000 \.\. 10000, or -inf to remove a pair, got 1e\+38",
        ),
        ({"image_table": torch.full((3, 3), torch.inf)}, "image_table must be within"),
        ({"image_table": torch.full((3, 3), torch.nan)}, "image_table must be within"),
        ({"image_table": torch.zeros(2, 2)}, r"image_labels must be within 0 \.\. 1, got 0 \.\. 2"),
        ({"factors": torch.full((6, 2), 1e19)}, "factors must be within -100"),
        ({"positive_rate": torch.tensor(1.5)}, r"positive_rate must be within 0 \.\. 1"),
    ],
)
def test_values_that_would_train_on_infinity_are_refused(changes, message):
    terms = LossTerms(image_labels=torch.arange(6) % 3, image_table=torch.zeros(3, 3)).replace(**changes)
    with pytest.raises(InputError, match=message):
        NegativesClipLoss(terms=terms)
    removed = LossTerms(image_labels=torch.arange(6) % 3, image_table=torch.full((3, 3), -torch.inf).fill_diagonal_(0.0))
    assert NegativesClipLoss(terms=removed).terms.image_table is not None
