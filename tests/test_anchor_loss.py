"""The state and the parameters of an anchor loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_negatives import Anchors, BatchSamples, FeatureQueue, LossTerms, NegativesClipLoss, Step
from clip_negatives.anchor_loss import AnchorLoss, StepTerms
from clip_negatives.anchors import info_nce
from clip_negatives.errors import InputError, PluginError
from clip_negatives.step import StepSamples, Towers

B = 6
SAMPLES = BatchSamples(ids=torch.arange(B))


def call(loss: NegativesClipLoss, **options: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(B, 4, generator=generator), dim=1).requires_grad_() for _ in range(2))
    return loss(x, y, torch.tensor(5.0), samples=SAMPLES, **options)


class OfClusters(AnchorLoss):
    """A loss with a parameter of K values, which can have a second name."""

    def __init__(self, k: int = 3, *, twice: bool = False) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(k))
        if twice:
            self.same = self.own

    def forward(self, anchors: Anchors) -> Tensor:
        return self.own.mean() * info_nce(anchors)


class Counted(StepTerms):
    """Terms of a table; counts the batches."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("batches", torch.zeros(()))

    def terms(self, step: Step) -> LossTerms:
        self.batches += 1
        return LossTerms(image_table=self.table, image_labels=step.samples.index % len(self.table))


class OneQueue(AnchorLoss):
    """Contrasts with one queue of both modalities, which gets more rows in a step than the step has samples."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FeatureQueue(3 * B)

    def forward(self, anchors: Anchors) -> Tensor:
        further = anchors.features @ self.queue.features.T if len(self.queue.features) else anchors.logits[:, :0]
        if anchors.modality == "text":
            self.queue.push(anchors.candidates, anchors.samples.candidates)
            self.queue.push(anchors.peers, anchors.samples.candidates)
        return torch.cat([anchors.logits, further], dim=1).logsumexp(1) - anchors.positive


def test_a_queue_with_several_pushes_in_a_step_changes_once_for_each_batch() -> None:
    loss = NegativesClipLoss(terms=OneQueue())
    for _ in range(3):
        value = call(loss)
        state = {name: part.clone() for name, part in loss.anchor_loss.state_dict().items()}
        assert torch.equal(call(loss, again=True), value)
        torch.testing.assert_close(dict(loss.anchor_loss.state_dict()), state, rtol=0, atol=0)


def test_a_step_without_gradients() -> None:
    rows = Towers(*(torch.eye(2, requires_grad=True) for _ in range(2)))
    scale, bias = (torch.ones((), requires_grad=True) for _ in range(2))
    step = Step(StepSamples(torch.arange(2), torch.arange(2)), rows, rows, scale, bias).detached()
    tensors = (*step.features, *step.candidates, step.scale, step.bias)
    assert not any(part.requires_grad for part in tensors)


def test_a_parameter_with_two_names_survives_new_clusters() -> None:
    first, second = OfClusters(twice=True), OfClusters(twice=True)
    loss = NegativesClipLoss(terms=first)
    loss.set_terms(second)
    assert second.own is first.own
    assert second.same is first.own


def test_parameters_of_another_shape_do_not_fit_new_clusters() -> None:
    loss = NegativesClipLoss(terms=OfClusters(3))
    with pytest.raises(InputError, match="OfClusters does not fit the new clusters"):
        loss.set_terms(OfClusters(4))


def test_the_state_of_step_terms_changes_once_for_each_batch() -> None:
    loss = NegativesClipLoss(terms=Counted(torch.zeros(2, 2)))
    call(loss)
    call(loss, again=True)
    assert float(loss.anchor_loss.batches) == 1
    call(loss)
    assert float(loss.anchor_loss.batches) == 2


@pytest.mark.parametrize("backend", ["torch", "chunked"])
def test_terms_that_need_gradients_are_an_error(backend: str) -> None:
    loss = NegativesClipLoss(terms=Counted(torch.zeros(2, 2, requires_grad=True)), backend=backend)
    with pytest.raises(InputError, match=r"image_table of the terms of the step needs gradients.*subclass AnchorLoss"):
        call(loss)


class Detached(AnchorLoss):
    def forward(self, anchors: Anchors) -> Tensor:
        return info_nce(anchors).detach()


class Averaged(AnchorLoss):
    def forward(self, anchors: Anchors) -> Tensor:
        return info_nce(anchors).mean()


def test_losses_of_a_wrong_shape_or_without_gradients_are_errors() -> None:
    with pytest.raises(PluginError, match="Detached returns losses that do not depend on the features"):
        call(NegativesClipLoss(terms=Detached()))
    with pytest.raises(PluginError, match=r"Averaged.forward must return the loss of each anchor, shape \(\d+,\), got \(\)"):
        call(NegativesClipLoss(terms=Averaged()))
