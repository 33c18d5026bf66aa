"""Checks of loss weightings."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss, StepTerms
from clip_negatives.anchors import Anchors, anchors
from clip_negatives.interfaces import Clustering, Clusters, LossTerms, LossWeighting
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.sampling import epoch_generator
from clip_negatives.step import BatchSamples, Position, Step, StepSamples, Towers
from clip_negatives.terms import MODALITIES
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.subject import Checks, NotApplicableError, expect, expect_tensor, may_reject, unmodified_clusters

N, B, DIM = 240, 32, 16  # samples, batch size and size of the embeddings
SCALE = 14.3  # initial logit scale of open_clip
BIAS = -10.0  # initial logit bias of SigLIP; it does not change a softmax


class WeightingChecks(Checks):
    """Checks of a loss weighting."""

    def terms_or_an_anchor_loss_is_returned(self) -> None:
        """The weighting returns `LossTerms` or an `AnchorLoss`."""
        terms = self._terms()
        fits = isinstance(terms, LossTerms | AnchorLoss)
        expect(fits, f"The weighting returns a {type(terms).__name__}. Return LossTerms or an AnchorLoss.")

    def tables_fit_their_labels(self) -> None:
        """Tensors with a value per sample have N entries; tables are float32, square or sparse, with a row for every label."""
        terms = self._loss_terms()
        for name in MODALITIES:
            labels, table, neighbours = (getattr(terms, f"{name}_{part}") for part in ("labels", "table", "neighbours"))
            expect((labels is None) == (table is None), f"Only one of {name}_labels and {name}_table is set. Set both or none.")
            if labels is not None:
                k, width = (len(table), len(table)) if neighbours is None else (len(neighbours), neighbours.shape[1] + 1)
                expect_tensor(f"{name}_table", table, torch.float32, (k, width))
                expect_tensor(f"{name}_labels", labels, torch.int64, (N,), below=k)
        for name, part in terms.per_sample().items():
            expect(len(part) == N, f"{name} does not fit {N} samples. Return one entry for each sample.")

    def log_weights_are_valid(self) -> None:
        """Tables are within [-inf, inf) and factors finite: no NaN, no infinite weight."""
        terms = self._loss_terms()
        for name, table in (("image_table", terms.image_table), ("text_table", terms.text_table)):
            valid = table is None or not bool((table.isnan() | (table == math.inf)).any())
            expect(valid, f"{name} holds NaN or +inf. Return log-weights: finite, or -inf to remove a pair.")
        for name, factors in (("factors", terms.factors), ("target_factors", terms.target_factors)):
            valid = factors is None or bool(factors.isfinite().all())
            expect(valid, f"{name} holds NaN or infinity. Return finite factors.")

    def scalars_are_in_range(self) -> None:
        """0 <= positive_rate < 1; hardness, positive_weight >= 0 and finite; 0 <= target_mass <= 1; -2 <= margin <= 2."""
        terms = self._loss_terms()
        if terms.positive_rate is not None:
            low, high = float(terms.positive_rate.min()), float(terms.positive_rate.max())
            expect(0 <= low <= high < 1, f"positive_rate is within {low:g} .. {high:g}. Return rates in [0, 1).")
        for name, number in (("hardness", terms.hardness), ("positive_weight", terms.positive_weight)):
            expect(0 <= number < math.inf, f"{name} is {number}. Return a finite number of at least 0.")
        expect(0 <= terms.target_mass <= 1, f"target_mass is {terms.target_mass}. Return a share within [0, 1].")
        margin = terms.margin
        expect(margin is None or -2 <= margin <= 2, f"margin is {margin}. Return a cosine difference, -2 .. 2.")

    def same_clusters_give_the_same_loss(self) -> None:
        """Two calls with the same clusters give the same loss; several processes rely on this."""
        first, second = value(self._terms()), value(self._terms())
        expect(torch.equal(first, second), f"The same clusters give losses {first:.6f}, {second:.6f}. Draw from a fixed seed.")

    def clusters_are_not_modified(self) -> None:
        """The weighting does not write to the clusters."""
        with unmodified_clusters(N) as clusters:
            value(self.plugin.create()(clusters))

    def loss_and_gradients_are_finite(self) -> None:
        """Loss and gradients are finite, also at open_clip's largest scale, for equal features and for a batch of two."""
        equal = torch.ones(B, DIM) / DIM**0.5
        for case, (x, y), scale in (
            ("an ordinary batch", batch(), SCALE),
            ("logit scale 100", batch(), 100.0),
            ("logit scale 100 and equal pairs", (batch()[0], batch()[0]), 100.0),
            ("equal features", (equal, equal.clone()), SCALE),
            ("a batch of two", tuple(side[:2] for side in batch()), SCALE),
        ):
            sides = [side.detach().requires_grad_() for side in (x, y)]
            loss = value(self._terms(), *sides, scale=scale)
            finite = all(bool(part.isfinite().all()) for part in (loss, *torch.autograd.grad(loss, sides)))
            expect(finite, f"With {case}, the loss or its gradient is NaN or infinite. Use logsumexp and avoid divisions by 0.")

    def a_batch_has_a_gradient(self) -> None:
        """An ordinary batch has a gradient: not every pair is removed."""
        sides = [side.requires_grad_() for side in batch()]
        largest = max(float(part.abs().max()) for part in torch.autograd.grad(value(self._terms(), *sides), sides))
        expect(largest > 1e-6, f"The largest gradient is {largest:.1e}. Keep some incorrect pairs of an ordinary batch.")

    def order_in_the_batch_does_not_matter(self) -> None:
        """The same samples in another order have the same loss."""
        (x, y), order = batch(), torch.randperm(B, generator=epoch_generator(1, 0))
        terms = self._terms()
        fresh = copy.deepcopy(terms)  # the first call may change the state
        first, second = value(terms, x, y), value(fresh, x[order], y[order], index=batch_index()[order])
        close = torch.allclose(first, second, rtol=1e-4, atol=1e-6)
        expect(close, f"Two orders of a batch give losses {first:.6f} and {second:.6f}. Use samples.index, not the position.")

    def works_without_clusters_if_declared(self) -> None:
        """A weighting whose factory has ``requires_clusters = False`` works without clusters."""
        if getattr(self.plugin.factory, "requires_clusters", True):
            raise NotApplicableError("the factory requires clusters")
        try:
            loss = float(value(self.plugin.create()(None)))
        except Exception as error:
            expect(False, f"Without clusters, the plugin stops with {error!r}. Accept None, or set requires_clusters = True.")
        expect(math.isfinite(loss), "Without clusters, the loss is not finite. If it needs them, set requires_clusters = True.")

    def missing_features_are_accepted_or_rejected(self) -> None:
        """Clusters without features, texts and groups are accepted, or are an error of clip_negatives.errors."""
        bare = dataclasses.replace(make_blobs(N), image_features=None, text_features=None, texts=None, groups=None)
        self._accept_or_reject(bare, "clusters without features, texts and groups")

    def one_cluster_is_accepted_or_rejected(self) -> None:
        """A single cluster is accepted, or is an error of clip_negatives.errors."""
        single = Clustering(torch.zeros(N, dtype=torch.int64), F.normalize(torch.ones(1, DIM), dim=1))
        similarity = torch.ones(1, 1)
        parts: dict[str, Any] = {"image": single, "text": single, "image_similarity": similarity, "text_similarity": similarity}
        self._accept_or_reject(dataclasses.replace(make_blobs(N), **parts), "one cluster")

    def anchor_loss_has_one_value_per_anchor(self) -> None:
        """An `AnchorLoss` returns shape (B,): one loss for each anchor."""
        loss = self._anchor_loss()
        everyone = Towers(*batch())
        for side in _sides(loss, everyone, everyone, StepSamples(batch_index(), batch_index())):
            shape = tuple(loss(side).shape)
            expect(shape == (B,), f"The loss has shape {shape}. Return one loss for each anchor, shape ({B},), without a mean.")

    def anchors_of_one_process_match_all(self) -> None:
        """The loss of an anchor is the same if a process holds only some anchors, which start at ``samples.offset``."""
        everyone, rows = Towers(*batch()), slice(B // 2, B)
        own, loss, other_loss = everyone.map(lambda side: side[rows]), self._anchor_loss(), self._anchor_loss()
        whole = StepSamples(batch_index(), batch_index())
        part = StepSamples(batch_index()[rows], batch_index(), B // 2)
        message = "Anchors of the second process get other losses. The positive of anchor i is candidate samples.offset + i."
        of_all, of_part = _sides(loss, everyone, everyone, whole), _sides(other_loss, own, everyone, part)
        for all_anchors, own_anchors in zip(of_all, of_part, strict=True):
            expected, losses = loss(all_anchors).flatten()[rows], other_loss(own_anchors).flatten()
            expect(torch.allclose(expected, losses, rtol=1e-4, atol=1e-5), message)

    def state_is_in_state_dict(self) -> None:
        """All state is in ``state_dict``: a copy that loads it computes the same losses."""
        first, second = self._anchor_loss(), self._anchor_loss()
        for seed in (0, 1):
            value(first, *batch(seed))
        second.load_state_dict({name: part.clone() for name, part in first.state_dict().items()})
        same = torch.equal(value(first, *batch(2)), value(second, *batch(2)))
        expect(same, "A copy with the same state_dict computes another loss. Keep all state in buffers (register_buffer).")

    def later_steps_have_gradients(self) -> None:
        """The gradient of a later step, which reads the state of earlier steps, is finite."""
        loss = self._anchor_loss()
        for seed in range(3):
            sides = [side.requires_grad_() for side in batch(seed)]
            try:
                gradients = torch.autograd.grad(value(loss, *sides), sides)
            except RuntimeError as error:
                remedy = "Do not write to the tensor that the loss has read: give the buffer a new tensor."
                expect(False, f"At step {seed}, the gradient stops with {error!r}. {remedy}")
            finite = all(bool(part.isfinite().all()) for part in gradients)
            expect(finite, f"At step {seed}, the gradient is NaN or infinite. Check the state that the loss reads.")

    def _use(self, instance: LossWeighting) -> float:
        return float(value(instance(make_blobs(N))))

    def _terms(self) -> Any:
        return self.plugin.create()(make_blobs(N))

    def _loss_terms(self) -> LossTerms:
        terms = self._terms()
        if isinstance(terms, StepTerms):
            raise NotApplicableError("this check sees only terms that are made once for all steps")
        if not isinstance(terms, LossTerms):
            raise NotApplicableError("the weighting returns no LossTerms")
        tensors = {name: getattr(terms, name) for name in LossTerms.tensor_fields()}
        wrong = ", ".join(sorted(name for name, part in tensors.items() if not isinstance(part, Tensor | None)))
        expect(not wrong, f"LossTerms has fields that are neither a tensor nor None: {wrong}. Set each to a tensor or None.")
        return terms

    def _accept_or_reject(self, clusters: Clusters, case: str) -> None:
        with may_reject(case):
            loss = float(value(self.plugin.create()(clusters)))
            expect(math.isfinite(loss), f"With {case}, the loss is {loss}. Handle the case, or raise an InputError.")

    def _anchor_loss(self) -> AnchorLoss:
        loss = self._terms()
        if not isinstance(loss, AnchorLoss) or isinstance(loss, StepTerms):
            raise NotApplicableError("the weighting does not compute the loss of each anchor")
        return loss


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return unit-norm image and text features of a batch; as in training, positives are more similar than other pairs."""
    generator = epoch_generator(seed, 1)
    x = torch.randn(B, DIM, generator=generator)
    return F.normalize(x, dim=1), F.normalize(x + torch.randn(B, DIM, generator=generator), dim=1)


def batch_index() -> Tensor:
    """Return the samples of a batch: every seventh sample, so that a batch has several clusters and groups."""
    return torch.arange(B) * 7 % N


def value(terms: Any, *sides: Tensor, scale: float = SCALE, index: Tensor | None = None) -> Tensor:
    """Return the loss of a batch: `sides` are its image and text features; without them, the loss of `batch`."""
    x, y = sides or batch()
    samples = BatchSamples(ids=batch_index()[: len(x)] if index is None else index).at(1, 2).with_teacher(x, y)
    bias = torch.tensor(BIAS) if isinstance(terms, AnchorLoss) else None
    loss: Tensor = NegativesClipLoss(terms=terms)(x, y, torch.tensor(scale), bias, samples=samples)
    return loss


def _sides(loss: AnchorLoss, own: Towers, everyone: Towers, samples: StepSamples) -> list[Anchors]:
    position = Position.of(epoch=0, step=1, total_steps=2)
    return list(
        anchors(Step(samples, own, everyone, torch.tensor(SCALE), torch.tensor(BIAS), position, loss.clusters, own, everyone))
    )
