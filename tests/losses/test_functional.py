"""What the loss equals, whichever backend computes it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import ClipLoss

from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.interfaces import LossTerms
from clip_negatives.losses import functional
from clip_negatives.losses.backends import select_backend
from clip_negatives.losses.functional import Candidates, Extras, pair_log_weights, weighted_info_nce
from tests.info_nce import BACKENDS, dense, features, gradients, naive_info_nce, swapped, weights

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_normalize = pytest.mark.parametrize("normalize", [False, True])
SCALE = torch.tensor(5.0, dtype=torch.float64)


@pytest.mark.parametrize("terms", [None, LossTerms(), LossTerms(normalize=True)], ids=["none", "neutral", "normalized"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [None, (), (1,)], ids=["no bias", "bias", "bias of shape 1"])
def test_neutral_terms_give_open_clips_loss_to_the_bit(terms, autocast, bias):
    x, y = features(33, 16, dtype=torch.float32)
    scale = torch.full(bias or (), 14.3, requires_grad=True)
    inputs = [x, y, scale]
    if bias is not None:
        inputs.append(torch.full(bias, -3.0, requires_grad=True))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        theirs, ours = ClipLoss()(*inputs), weighted_info_nce(*inputs, terms=terms, backend="torch")
    assert torch.equal(theirs, ours)
    assert theirs.dtype == ours.dtype
    for their, our in zip(gradients(theirs, *inputs), gradients(ours, *inputs), strict=True):
        assert torch.equal(their, our)


def test_gathered_features_give_the_operations_of_open_clip_with_several_processes():
    x, y = features(9, 8, dtype=torch.float32)
    logits = 14.3 * x @ y.T
    target = torch.arange(9)
    theirs = (torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)) / 2
    ours = weighted_info_nce(x, y, 14.3, gathered=True, backend="torch")
    assert all(map(torch.equal, gradients(theirs, x, y), gradients(ours, x, y)))
    assert torch.equal(theirs, ours)


@each_backend
@each_normalize
@pytest.mark.parametrize("parts", ["i", "t", "f", "it", "itf"])
def test_equals_two_loops_by_hand(backend, normalize, parts):
    x, y = features(7, 4)
    terms = weights(7, normalize=normalize, parts=parts)
    ours = weighted_info_nce(x, y, SCALE, -1.5, terms=terms, backend=backend, chunk_size=3)
    assert ours.item() == pytest.approx(naive_info_nce(x, y, 5.0, -1.5, dense(terms, 7), normalize), rel=1e-6)


@each_backend
@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), d=st.integers(1, 5), k=st.integers(1, 4), chunk=st.integers(1, 12), seed=st.integers(0, 99))
def test_equals_two_loops_for_any_shape(backend, n, d, k, chunk, seed):
    x, y = features(n, d, seed)
    terms = weights(n, k=k, seed=seed, normalize=seed % 2 == 0, drop=0.4)
    ours = weighted_info_nce(x, y, SCALE, terms=terms, backend=backend, chunk_size=chunk)
    assert ours.item() == pytest.approx(naive_info_nce(x, y, 5.0, 0.0, dense(terms, n), terms.normalize), rel=1e-6, abs=1e-9)


@each_backend
@pytest.mark.parametrize("extra", [0, 3])
def test_without_text_anchors_images_alone_are_told_from_texts(backend, extra):
    (x, y), more = features(7, 5), features(3, 5, seed=2)[0][:extra]
    terms, b, target = weights(7), dense(weights(7), 7), torch.arange(7)
    z = torch.cat([SCALE * x @ y.T + b.double().fill_diagonal_(0), SCALE * x @ more.T], dim=1)
    how = {"text_anchors": False, "backend": backend, "chunk_size": 2}
    found = weighted_info_nce(x, y, SCALE, terms=terms, extra_texts=Extras(more) if extra else None, **how)
    torch.testing.assert_close(found, F.cross_entropy(z, target))
    torch.testing.assert_close(weighted_info_nce(x, y, SCALE, **how), F.cross_entropy(SCALE * x @ y.T, target))


@each_backend
def test_a_removed_sample_is_as_if_it_were_not_in_the_batch(backend):
    x, y = features(6, 4)
    # Sample 5 has a cluster of its own whose pairs are all removed; what is left of it is a row and a column of loss 0.
    table = torch.zeros(2, 2)
    table[0, 1] = table[1, 0] = -torch.inf
    terms = LossTerms(image_labels=torch.tensor([0, 0, 0, 0, 0, 1]), image_table=table)
    with_it = weighted_info_nce(x, y, SCALE, terms=terms, backend=backend)
    without = weighted_info_nce(x[:5], y[:5], SCALE, backend=backend)
    torch.testing.assert_close(with_it * 6, without * 5)
    for one, other in zip(gradients(with_it * 6, x, y), gradients(without * 5, x, y), strict=True):
        torch.testing.assert_close(one, other)


@each_backend
@each_normalize
def test_all_negatives_removed_is_a_loss_of_zero_with_finite_gradients(backend, normalize):
    x, y = features(5, 4)
    scale = SCALE.clone().requires_grad_()
    terms = LossTerms(
        image_labels=torch.zeros(5, dtype=torch.int64), image_table=torch.tensor([[-torch.inf]]), normalize=normalize
    )
    loss = weighted_info_nce(x, y, scale, terms=terms, backend=backend)
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients(loss, x, y, scale))


@each_backend
@each_normalize
def test_one_row_without_negatives_harms_no_other(backend, normalize):
    x, y = features(4, 4)
    table = torch.tensor([[0.5, -1.0], [-torch.inf, -torch.inf]])  # image of cluster 1: no text is incorrect
    terms = LossTerms(image_labels=torch.tensor([0, 1, 0, 0]), image_table=table, normalize=normalize)
    loss = weighted_info_nce(x, y, SCALE, terms=terms, backend=backend, chunk_size=2)
    assert loss.item() == pytest.approx(naive_info_nce(x, y, 5.0, 0.0, dense(terms, 4), normalize), rel=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, x, y))


@each_backend
@each_normalize
def test_the_order_of_the_batch_changes_nothing(backend, normalize):
    x, y = features(8, 4)
    terms, order = weights(8, normalize=normalize), torch.randperm(8, generator=torch.Generator().manual_seed(3))
    one = weighted_info_nce(x, y, SCALE, terms=terms, backend=backend, chunk_size=3)
    other = weighted_info_nce(x[order], y[order], SCALE, terms=terms.take(order), backend=backend, chunk_size=3)
    torch.testing.assert_close(one, other)
    for first, second in zip(gradients(one, x, y), gradients(other, x, y), strict=True):
        torch.testing.assert_close(first, second)


@each_backend
@each_normalize
def test_swapping_the_modalities_with_transposed_tables_changes_nothing(backend, normalize):
    x, y = features(8, 4)
    terms = weights(8, normalize=normalize)
    one = weighted_info_nce(x, y, SCALE, terms=terms, backend=backend, chunk_size=3)
    torch.testing.assert_close(one, weighted_info_nce(y, x, SCALE, terms=swapped(terms), backend=backend, chunk_size=3))
    unswapped = weighted_info_nce(y, x, SCALE, terms=terms, backend=backend)
    assert (one - unswapped).abs() > 1e-3, "The tables are asymmetric, so that this test can see the orientation."


@each_backend
def test_what_is_added_to_all_pairs_changes_nothing(backend):
    x, y = features(8, 4)
    plain, terms = weights(8), weights(8, normalize=True)
    raised = terms.replace(image_table=terms.image_table + 7)
    torch.testing.assert_close(
        weighted_info_nce(x, y, SCALE, terms=terms, backend=backend),
        weighted_info_nce(x, y, SCALE, terms=raised, backend=backend),
    )
    for each in (None, plain):
        torch.testing.assert_close(
            weighted_info_nce(x, y, SCALE, terms=each, backend=backend),
            weighted_info_nce(x, y, SCALE, 9.0, terms=each, backend=backend),
        )


@each_backend
@each_normalize
def test_a_weight_on_the_positive_is_ignored(backend, normalize):
    x, y = features(4, 4)
    table = torch.zeros(4, 4)
    labels = torch.arange(4)
    heavy = table.clone().fill_diagonal_(9.0)
    gone = table.clone().fill_diagonal_(-torch.inf)
    plain = weighted_info_nce(x, y, SCALE, backend=backend)
    for each in (heavy, gone):
        terms = LossTerms(image_labels=labels, image_table=each, normalize=normalize)
        torch.testing.assert_close(weighted_info_nce(x, y, SCALE, terms=terms, backend=backend), plain)


@each_backend
@each_normalize
def test_rows_of_each_process_against_all_average_to_the_whole(backend, normalize):
    x, y = features(9, 4)
    scale = SCALE.clone().requires_grad_()
    terms = weights(9, normalize=normalize)
    whole = weighted_info_nce(x, y, scale, terms=terms, backend=backend)
    parts = [
        weighted_info_nce(
            x[start : start + 3],
            y[start : start + 3],
            scale,
            terms=terms.take(torch.arange(start, start + 3)),
            candidates=Candidates(x, y, terms, start),
            backend=backend,
            chunk_size=2,
        )
        for start in (0, 3, 6)
    ]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole)
    for one, other in zip(gradients(mean, x, y, scale), gradients(whole, x, y, scale), strict=True):
        torch.testing.assert_close(one, other)


@each_backend
@pytest.mark.parametrize("rectangle", [False, True])
def test_inputs_and_random_state_are_left_alone(backend, rectangle):
    x, y = features(6, 4)
    terms = weights(6, normalize=True)
    given = [x, y, terms.image_table, terms.text_table, terms.image_labels, terms.text_labels, terms.factors]
    before, state = [tensor.detach().clone() for tensor in given], torch.get_rng_state()
    candidates = Candidates(x, y, terms) if rectangle else None
    weighted_info_nce(x, y, SCALE, terms=terms, candidates=candidates, backend=backend).backward()
    assert all(map(torch.equal, given, before))
    assert torch.equal(torch.get_rng_state(), state)


@each_backend
@pytest.mark.parametrize("targeted", [False, True])
def test_survives_torch_compile(backend, targeted):
    terms = weights(6, normalize=True)
    if targeted:
        terms = terms.replace(target_factors=torch.linspace(-1, 1, 12).view(6, 2), target_mass=0.3)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4).double()

        def forward(self, x, y):
            return weighted_info_nce(self.layer(x), y, SCALE, terms=terms, backend=backend, chunk_size=4)

    with torch.random.fork_rng():
        model = Model()
    x, y = features(6, 4)
    expected = model(x, y)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(x, y)
    torch.testing.assert_close(compiled, expected)
    parameters = list(model.parameters())
    for one, other in zip(gradients(compiled, *parameters), gradients(expected, *parameters), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("kinds", "largest", "smallest"),
    [
        ({}, 128, 256),
        ({"weighted": True}, 512, 1024),
        ({"weighted": True, "treated": True}, 128, 256),
    ],
)
def test_auto_takes_the_backend_that_was_fastest_on_the_cpu(kinds, largest, smallest):
    cpu = torch.device("cpu")
    assert select_backend(cpu, largest, largest, **kinds)[0] == "torch"
    assert select_backend(cpu, smallest, smallest, **kinds)[0] == "chunked"


@pytest.mark.parametrize(
    ("treatment", "expected"), [({}, "torch"), ({"margin": 0.1}, "chunked"), ({"hardness": 1.0}, "chunked")]
)
def test_auto_knows_other_treatments_than_log_weights(monkeypatch, treatment, expected):
    x, y = features(256, 4, dtype=torch.float32)
    chosen, terms = [], weights(256, parts="it").replace(**treatment)
    monkeypatch.setattr(
        functional, "select_backend", lambda *shape, **kinds: chosen.append(select_backend(*shape, **kinds)) or chosen[0]
    )
    weighted_info_nce(x, y, 9.0, terms=terms)
    assert chosen[0][0] == expected


def test_auto_takes_what_select_backend_says():
    x, y = features(4, 4, dtype=torch.float32)
    assert select_backend(torch.device("cpu"), 4, 4)[0] == "torch"
    assert select_backend(torch.device("cpu"), 4096, 4096)[0] == "chunked"
    assert select_backend(torch.device("cuda"), 4096, 4096)[0] == "torch"
    chosen, why = select_backend(torch.device("cuda"), 8192, 65536)
    assert chosen == ("triton" if torch.cuda.is_available() else "chunked"), why
    _, why = select_backend(torch.device("cpu"), 999, 999, dtype=torch.float64)
    assert "triton: it does not support torch.float64" in why
    assert torch.equal(weighted_info_nce(x, y, 9.0), weighted_info_nce(x, y, 9.0, backend="torch"))


def test_pair_log_weights_equal_the_dense_ones():
    terms, n = weights(6), 6
    i, j = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    torch.testing.assert_close(pair_log_weights(terms, i, j).double(), dense(terms, n).flatten())
    assert torch.equal(pair_log_weights(LossTerms(), i, j), torch.zeros(n * n))
    with pytest.raises(InputError, match=r"must have one shape \(M,\)"):
        pair_log_weights(terms, i, j[1:])


X, META = torch.ones(3, 2), torch.ones(3, 2, device="meta")
LABELS = torch.zeros(3, dtype=torch.int64)
TABLE = LossTerms(image_labels=LABELS, image_table=torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, X[:2], 1.0), r"one shape \(B, D\), got \(3, 2\) and \(2, 2\)"),
        ((X[0], X[0], 1.0), r"one shape \(B, D\)"),
        ((X[:0], X[:0], 1.0), r"one shape \(B, D\)"),
        ((X.long(), X.long(), 1.0), "Features must be floating-point, got torch.int64"),
        ((X, META, 1.0), "on one device, got image on cpu, text on meta, candidate image on cpu, candidate text on meta"),
        ((X, X, torch.ones(2)), r"logit_scale must be one number, got shape \(2,\)"),
        ((X, X, 1.0, torch.ones(2)), "logit_bias must be one number"),
    ],
)
def test_features_that_do_not_fit_are_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        weighted_info_nce(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda"}, "auto, torch, chunked, triton"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"candidates": Candidates(X, X, offset=1)}, r"candidates.offset must be within 0 .. 0 \(G - B\), got 1"),
        ({"candidates": Candidates(X[:, :1], X[:, :1])}, r"one shape \(G, 2\)"),
        ({"candidates": Candidates(META, META)}, "image on cpu, text on cpu, candidate image on meta, candidate text on meta"),
        ({"candidates": Candidates(X, X), "terms": TABLE}, "must both have image_labels, or neither"),
        ({"candidates": Candidates(X, X, TABLE.replace(groups=LABELS)), "terms": TABLE}, "must both have groups, or neither"),
        (
            {"candidates": Candidates(X, X, LossTerms(factors=X[:, :1])), "terms": LossTerms(factors=X)},
            "terms.factors and candidates.terms.factors differ",
        ),
        ({"candidates": Candidates(X, X, TABLE.to("meta")), "terms": TABLE}, "candidates.terms.image_labels is on meta"),
    ],
)
def test_options_that_do_not_fit_are_an_error(options, message):
    with pytest.raises(InputError, match=message):
        weighted_info_nce(X, X, 1.0, **options)


@pytest.mark.parametrize("backend", ["torch", "chunked"])
@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (LossTerms(margin=3.0), "terms.margin must be within -2 .. 2, got 3.0"),
        (LossTerms(hardness=-1.0), "terms.hardness must be at least 0, got -1.0"),
        (LossTerms(positive_weight=torch.inf), "terms.positive_weight must be at least 0, got inf"),
        (LossTerms(positive_rate=torch.zeros(2)), "terms.positive_rate has 2 samples, the batch has 3"),
        (LossTerms(positive_rate=torch.zeros(3, 1)), r"terms.positive_rate must have shape \(N,\) or \(\), got \(3, 1\)"),
        (LossTerms(groups=LABELS[:2]), "terms.groups has 2 samples, the batch has 3"),
        (LossTerms(groups=LABELS.float()), "terms.groups must be int64, got torch.float32"),
        (TABLE.take(LABELS[:1]), r"terms.image_labels has 1 samples, the batch has 3. Pass .*: terms.take\(index\)"),
        (TABLE.replace(image_labels=None), "terms.image_table needs image_labels"),
        (TABLE.replace(image_table=torch.zeros(1, 2)), r"terms.image_table must have shape \(1, 1\), got \(1, 2\)"),
        (TABLE.replace(image_neighbours=LABELS[:1, None]), r"terms.image_table must have shape \(1, 2\), got \(1, 1\)"),
        (TABLE.replace(image_labels=LABELS.float()), "terms.image_labels must be int64, got torch.float32"),
        (TABLE.to("meta"), r"terms.image_labels is on meta, the features are on cpu. Move them: terms.to\(features.device\)"),
        (LossTerms(groups=LABELS.to("meta")), "terms.groups is on meta"),
        (LossTerms(positive_rate=torch.zeros(3, device="meta")), "terms.positive_rate is on meta"),
        (LossTerms(positive_rate=torch.zeros((), device="meta")), "terms.positive_rate is on meta"),
        (LossTerms(positive_rate=0.1), "terms.positive_rate must be a tensor, got float"),
        (LossTerms(groups=LABELS.numpy()), "terms.groups must be a tensor, got ndarray"),
        (LossTerms(groups=LABELS.to(torch.int8)), "terms.groups must be int64, got torch.int8"),
        (TABLE.replace(image_table=torch.zeros(1, 1, dtype=torch.bool)), "must be floating-point, got torch.bool"),
        (LossTerms(hardness=None), "terms.hardness must be at least 0, got None"),
        (LossTerms(factors=META), "terms.factors is on meta"),
        (LossTerms(factors=LABELS[:, None]), "terms.factors must be floating-point, got torch.int64"),
    ],
)
def test_terms_that_do_not_fit_are_an_error_on_every_backend(terms, message, backend):
    with pytest.raises(InputError, match=message):
        weighted_info_nce(X, X, 1.0, terms=terms, backend=backend)


@pytest.mark.parametrize("backend", ["torch", "chunked"])
def test_debiased_loss_at_a_large_scale_has_finite_gradients(backend):
    x = torch.eye(2, requires_grad=True)
    loss = weighted_info_nce(x, x, 100.0, terms=LossTerms(positive_rate=torch.tensor(0.1)), backend=backend)
    assert gradients(loss, x)[0].isfinite().all()


def test_triton_refuses_texts_in_double_precision():
    x = torch.eye(3)
    with pytest.raises(UnsupportedError, match=r"it does not support torch\.float64"):
        weighted_info_nce(x, x.double(), 1.0, backend="triton")
