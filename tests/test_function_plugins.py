"""Weightings and samplers written as functions."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives import (
    Anchors,
    BatchSamples,
    Clusters,
    LossTerms,
    NegativesClipLoss,
    SamplingContext,
    Step,
    sampler,
    weighting,
)
from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.errors import InputError, PluginError
from clip_negatives.host.options import options_of
from clip_negatives.sampling import name_of
from clip_negatives.testing import parametrize_with_checks
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.weightings import SCALE, batch, batch_index
from clip_negatives.training.weighting import teaches


@weighting
def soft_tables(clusters: Clusters, *, gamma: float = 1.0, side: Literal["image", "text"] = "image") -> LossTerms:
    """Weight by the similarity of the clusters."""
    table = gamma * clusters.similarity_of(side, "soft_tables")
    labels = (clusters.image if side == "image" else clusters.text).labels
    return LossTerms(**{f"{side}_table": table, f"{side}_labels": labels})


@weighting
def growing_tables(step: Step, *, gamma: float = 1.0) -> LossTerms:
    """Weight by the clusters, more and more, and log how much."""
    assert step.clusters is not None
    step.log("factor", step.progress)
    table = step.progress * gamma * step.clusters.image_similarity
    return LossTerms(image_table=table, image_labels=step.clusters.image.labels[step.samples.index])


@weighting
def annealed(anchors: Anchors, *, beta: float = 1.0) -> Tensor:
    """Weight by the live similarity, less and less."""
    return beta * (1 - anchors.step.progress) * anchors.cosines.detach()


@weighting(returns="targets")
def softened(anchors: Anchors, *, mass: float = 0.1) -> Tensor:
    """Give the other pairs of a modality a part of the target, by their similarity within it."""
    own = (~anchors.negatives).to(anchors.logits)
    peers = (10 * anchors.features.detach() @ anchors.peers.detach().T).softmax(1)
    return (1 - mass) * own + mass * peers


@sampler(requires_clusters=False)
def shuffled(context: SamplingContext, generator: torch.Generator, *, backwards: bool = False) -> Tensor:
    """Shuffle the samples."""
    order = torch.randperm(context.n_samples, generator=generator)[: context.steps * context.step_size]
    return (order.flip(0) if backwards else order).view(context.steps, context.step_size)


@sampler(repeats=True)
def head_and_rest(context: SamplingContext, generator: torch.Generator, epoch: int, *, head: int = 1) -> Tensor:
    """Put the first samples into each step of later epochs."""
    steps, size = context.steps, context.step_size
    drawn = torch.randperm(context.n_samples - head, generator=generator)[: steps * (size - head)].view(steps, -1) + head
    return torch.cat([torch.arange(head).expand(steps, head), drawn], dim=1) if epoch or head else drawn


@parametrize_with_checks("loss_weighting", soft_tables, growing_tables, annealed, softened)
def test_weightings_pass_the_kit(plugin, check) -> None:
    check(plugin)


@parametrize_with_checks("negative_sampler", shuffled, head_and_rest)
def test_samplers_pass_the_kit(plugin, check) -> None:
    check(plugin)


def loss_of(terms: object, progress: float = 0.5, **options: object) -> tuple[Tensor, NegativesClipLoss]:
    loss = NegativesClipLoss(terms=terms, **options)
    samples = BatchSamples(ids=batch_index()).at(round(100 * progress), 100)
    return loss(*batch(), torch.tensor(SCALE), samples=samples), loss


def test_terms_of_a_step_equal_the_schedule() -> None:
    clusters = make_blobs(240)
    tables = soft_tables(gamma=2.0)(clusters).replace(schedule=((0.0, 0.0), (1.0, 1.0)))
    for progress in (0.0, 0.25, 1.0):
        stepwise, loss = loss_of(growing_tables(gamma=2.0)(clusters), progress)
        torch.testing.assert_close(stepwise, loss_of(tables, progress)[0])
        assert float(loss.logged["factor"]) == progress


def test_log_weights_equal_cross_entropy() -> None:
    x, y = (side.double() for side in batch())
    logits = SCALE * x @ y.T
    own = torch.eye(len(x), dtype=torch.bool)
    b = (2.0 * 0.5 * (x @ y.T)).masked_fill(own, 0.0)
    target = torch.arange(len(x))
    expected = (F.cross_entropy(logits + b, target) + F.cross_entropy((logits + b).T, target)) / 2
    torch.testing.assert_close(loss_of(annealed(beta=2.0)(make_blobs(240)))[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_targets_equal_cross_entropy() -> None:
    x, y = (side.double() for side in batch())
    losses = []
    for anchors, others in ((x, y), (y, x)):
        targets = 0.8 * torch.eye(len(x)) + 0.2 * (10 * anchors @ anchors.T).softmax(1)
        losses.append(F.cross_entropy(SCALE * anchors @ others.T, targets))
    got = loss_of(softened(mass=0.2)(make_blobs(240)))[0].double()
    torch.testing.assert_close(got, sum(losses) / 2, rtol=1e-5, atol=1e-6)


@weighting(requires_clusters=False)
@torch.no_grad()
def without_gradients(anchors: Anchors) -> Tensor:
    """Weight by the live similarity, without ``detach``."""
    return 1.0 * anchors.cosines


@sampler(requires_clusters=False)
@torch.random.fork_rng(devices=[])
def draws_outside(context: SamplingContext, generator: torch.Generator) -> Tensor:
    """Plan with the global random numbers, which the decorator restores."""
    return torch.randperm(context.n_samples)[: context.steps * context.step_size].view(context.steps, -1)


def test_other_decorators_of_a_function_stay() -> None:
    gradients = []
    for loss in (without_gradients()(make_blobs(240)), annealed(beta=1.0)(make_blobs(240))):
        x, y = (side.requires_grad_() for side in batch())
        samples = BatchSamples(ids=batch_index()).at(0, 100)
        value = NegativesClipLoss(terms=loss)(x, y, torch.tensor(SCALE), samples=samples)
        gradients.append(torch.autograd.grad(value, (x, y)))
    torch.testing.assert_close(*gradients)
    before = torch.get_rng_state()
    list(draws_outside(SamplingContext(4, 2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_options_come_from_the_signature() -> None:
    assert [(option.name, option.default) for option in options_of(soft_tables)] == [("gamma", 1.0), ("side", "image")]
    assert options_of(soft_tables)[1].choices == ("image", "text")
    assert [option.name for option in options_of(shuffled, skip=1)] == ["backwards"]
    assert [option.name for option in options_of(head_and_rest, skip=1)] == ["head"]
    assert shuffled.__doc__ == "Shuffle the samples."


def test_plugins_pickle_with_their_options() -> None:
    made = pickle.loads(pickle.dumps(annealed(beta=3.0)))
    assert made.options == {"beta": 3.0}
    drawn = shuffled(SamplingContext(20, 4), backwards=True)
    assert list(pickle.loads(pickle.dumps(drawn))) == list(drawn)


def test_wrong_first_parameters_are_errors() -> None:
    with pytest.raises(PluginError, match=r"weighting .*wrong must be clusters or step or anchors, not batch"):

        @weighting
        def wrong(batch: object) -> None: ...

    with pytest.raises(PluginError, match=r"first parameters of the sampler .*odd must be \(context, generator\) or"):

        @sampler
        def odd(context: object) -> None: ...


def test_wrong_results_are_errors() -> None:
    @weighting
    def flat(anchors: Anchors) -> Tensor:
        return anchors.cosines.sum(1)

    @weighting
    def tensor(step: Step) -> Tensor:
        return step.features.image

    with pytest.raises(PluginError, match=r"flat returns \(32,\), not a tensor of shape \(B, G\), here \(32, 32\)"):
        loss_of(flat()(make_blobs(240)))
    with pytest.raises(PluginError, match="tensor returns a Tensor, not LossTerms"):
        loss_of(tensor()(make_blobs(240)))


def test_functions_have_names_in_states_and_messages() -> None:
    assert name_of(shuffled(SamplingContext(20, 4))) == "shuffled"

    @sampler
    def listed(context: SamplingContext, generator: torch.Generator) -> list[int]:
        return [0]

    @sampler
    def doubled(context: SamplingContext, generator: torch.Generator) -> Tensor:
        return torch.zeros(context.steps, context.step_size, dtype=torch.int64) + torch.arange(context.step_size)

    context = SamplingContext(20, 4)
    with pytest.raises(InputError, match=r"The plan of the sampler .*listed must have shape \(5, 4\) .* got a list"):
        list(listed(context))
    with pytest.raises(InputError, match=r"doubled plans a sample several times\. Use each at most once in an epoch"):
        list(doubled(context))
    plan = sampler(repeats=True)(lambda context, generator: torch.zeros(5, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="at most once in a step"):
        list(plan(context))


def test_wrong_targets_and_kinds_are_errors() -> None:
    @weighting(returns="targets")
    def ones(anchors: Anchors) -> Tensor:
        return torch.ones_like(anchors.logits)

    @weighting
    def nothing(clusters: Clusters) -> None:
        return None

    with pytest.raises(PluginError, match="ones returns targets whose rows sum to 32, not to 1"):
        loss_of(ones()(make_blobs(240)))
    with pytest.raises(PluginError, match="nothing returns a NoneType, not LossTerms"):
        nothing()(make_blobs(240))
    with pytest.raises(PluginError, match="returns must be 'log_weights' or 'targets', got 'foo'"):
        weighting(returns="foo")(lambda anchors: anchors.logits)


def test_wrong_uses_of_a_step_are_errors() -> None:
    @weighting
    def audio(step: Step) -> LossTerms:
        return LossTerms(factors=step.frozen("audio"))

    @weighting
    def matrix(anchors: Anchors) -> Tensor:
        anchors.step.log("cosines", anchors.cosines)
        return anchors.cosines

    class Scalar(AnchorLoss):
        def forward(self, anchors: Anchors) -> Tensor:
            return anchors.logits.mean()

    with pytest.raises(InputError, match="modality must be 'image' or 'text', got 'audio'"):
        loss_of(audio()(make_blobs(240)))
    with pytest.raises(InputError, match=r"figure 'cosines' must be one number, got shape \(32, 32\)"):
        loss_of(matrix()(make_blobs(240)))
    with pytest.raises(PluginError, match=r"Scalar.forward must return the loss of each anchor, shape \(32,\), got \(\)"):
        loss_of(Scalar())
    with pytest.raises(PluginError, match=r"AnchorLoss has no forward\(anchors\)"):
        loss_of(AnchorLoss())
    with pytest.raises(InputError, match=r"features of a teacher must both have shape \(3, D\)"):
        BatchSamples(ids=torch.arange(3)).with_teacher(torch.ones(2, 4), torch.ones(2, 4))
    with pytest.raises(InputError, match=r"features are of 32 samples, samples= are 3\."):
        NegativesClipLoss()(*batch(), torch.tensor(SCALE), samples=BatchSamples(ids=torch.arange(3)))


@weighting(requires_clusters=False)
def masked(anchors: Anchors) -> Tensor:
    """Return a mask in place of log-weights."""
    return anchors.cosines > 0


@weighting(requires_clusters=False)
def undefined(anchors: Anchors) -> Tensor:
    """Return NaN."""
    return anchors.cosines.detach() * torch.nan


@weighting
def undefined_terms(step: Step) -> LossTerms:
    """Return NaN in a table."""
    table = step.clusters.image_similarity * torch.nan
    return LossTerms(image_table=table, image_labels=step.clusters.image.labels[step.samples.index])


@weighting
def faulty(step: Step) -> LossTerms:
    """Stop with an exception."""
    return {}["terms"]


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (masked, r"masked returns a tensor of torch.bool, not of floats; .* -inf removes the pair"),
        (undefined, "undefined makes the loss NaN or infinite, while the features are finite"),
        (undefined_terms, "undefined_terms makes the loss NaN or infinite, while the features are finite"),
        (faulty, r"faulty stopped with KeyError: 'terms' \(.*test_function_plugins.py, line \d+\)"),
    ],
)
def test_faults_of_a_step_name_the_weighting(factory: Callable[[], Any], words: str) -> None:
    for backend in ("auto", "chunked")[: 1 + (factory in (undefined_terms, faulty))]:  # log-weights of all pairs need torch
        loss = NegativesClipLoss(terms=factory()(make_blobs(240)), backend=backend)
        with pytest.raises(PluginError, match=words):
            loss(*batch(), torch.tensor(SCALE), samples=BatchSamples(ids=batch_index()))


def test_features_that_are_not_finite_are_no_fault_of_the_weighting() -> None:
    loss = NegativesClipLoss(terms=annealed()(make_blobs(240)))
    x, y = batch()
    samples = BatchSamples(ids=batch_index()).at(0, 10, epoch=0)
    assert loss(x * torch.nan, y, torch.tensor(SCALE), samples=samples).isnan()


def test_values_of_the_first_terms_are_checked() -> None:
    with pytest.raises(InputError, match=r"undefined_terms returns wrong terms: terms\.image_table must be within"):
        teaches(undefined_terms()(make_blobs(64)), make_blobs(64))
