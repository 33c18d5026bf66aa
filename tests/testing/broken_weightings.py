"""Broken weightings, by the one check that must fail."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.testing.weightings import DIM


class Sound:
    """A correct weighting: by the similarity of image clusters."""

    def __call__(self, clusters: Clusters) -> Any:
        return LossTerms(image_labels=clusters.image.labels, image_table=-clusters.image_similarity)


class Momentum(AnchorLoss):
    """A correct loss with state: each anchor is weighed by its previous loss."""

    last: Tensor

    def __init__(self, n_samples: int) -> None:
        super().__init__()
        self.n_samples = n_samples
        self.register_buffer("last", torch.zeros(2, n_samples))

    def forward(self, anchors: Anchors) -> Tensor:
        loss = info_nce(anchors)
        state = self.last[0 if anchors.modality == "image" else 1]
        before = state[anchors.samples.index]
        anchors.remember(state, loss)
        return loss * (1 + 0.1 * before.tanh())


class SoundByStep:
    loss: type[AnchorLoss] = Momentum

    def __call__(self, clusters: Clusters) -> Any:
        return self.loss(clusters.n_samples)


class ReturnsATable(Sound):
    """Returns an object with the attributes of `LossTerms`."""

    def __call__(self, clusters: Clusters) -> Any:
        terms = super().__call__(clusters)
        return _LikeTerms(**{item.name: getattr(terms, item.name) for item in dataclasses.fields(LossTerms)})


@dataclasses.dataclass(frozen=True)
class _LikeTerms:
    image_labels: Any
    image_table: Any
    text_labels: Any
    text_table: Any
    factors: Any
    normalize: Any
    groups: Any
    positive_rate: Any
    hardness: Any
    margin: Any
    attract: Any
    positive_weight: Any
    image_neighbours: Any
    text_neighbours: Any
    target_factors: Any
    target_mass: Any
    schedule: Any


class LacksATable(Sound):
    def __call__(self, clusters: Clusters) -> Any:
        return dataclasses.replace(super().__call__(clusters), text_labels=clusters.text.labels)


class WeighsByNan(Sound):
    def __call__(self, clusters: Clusters) -> Any:
        table = -clusters.image_similarity
        unused = torch.full((len(table) + 1, len(table) + 1), torch.nan)
        unused[:-1, :-1] = table
        return LossTerms(image_labels=clusters.image.labels, image_table=unused)


class DebiasesByOne(Sound):
    def __call__(self, clusters: Clusters) -> Any:
        rate = torch.zeros(clusters.n_samples)
        rate[-1] = 1.0  # this sample is in no batch of the checks
        return dataclasses.replace(super().__call__(clusters), positive_rate=rate)


class _ColumnOfLosses(Momentum):
    def forward(self, anchors: Anchors) -> Tensor:
        return super().forward(anchors)[:, None]


class ReturnsAColumn(SoundByStep):
    loss = _ColumnOfLosses


class SeedsItselfAnew(Sound):
    n_created = 0

    def __init__(self) -> None:
        SeedsItselfAnew.n_created += 1
        self.strength = 1 + 0.1 * self.n_created

    def __call__(self, clusters: Clusters) -> Any:
        terms = super().__call__(clusters)
        return dataclasses.replace(terms, image_table=terms.image_table * self.strength)


class DrawsGlobally(Sound):
    def __call__(self, clusters: Clusters) -> Any:
        torch.rand(1)
        return super().__call__(clusters)


class WritesToTheClusters(Sound):
    def __call__(self, clusters: Clusters) -> Any:
        terms = super().__call__(clusters)
        clusters.image_similarity.zero_()
        return terms


class _Overflows(Momentum):
    def forward(self, anchors: Anchors) -> Tensor:
        return anchors.logits.exp().sum(1).log() - anchors.positive + 0 * super().forward(anchors)


class Overflows(SoundByStep):
    loss = _Overflows


class RemovesEveryPair(Sound):
    def __call__(self, clusters: Clusters) -> Any:
        return LossTerms(image_labels=clusters.image.labels, image_table=torch.full_like(clusters.image_similarity, -torch.inf))


class _ByPlace(Momentum):
    """Weighs an anchor by its position among all candidates."""

    def forward(self, anchors: Anchors) -> Tensor:
        loss = super().forward(anchors)
        place = torch.arange(len(loss)) + anchors.samples.offset
        return loss * (1 + place.remainder(5))


class WeighsByPlace(SoundByStep):
    loss = _ByPlace


class _IgnoresTheOffset(Momentum):
    def forward(self, anchors: Anchors) -> Tensor:
        return anchors.logits.logsumexp(1) - anchors.logits.diagonal() + 0 * super().forward(anchors)


class IgnoresTheOffset(SoundByStep):
    loss = _IgnoresTheOffset


class _KeepsItsStateToItself(Momentum):
    def __init__(self, n_samples: int) -> None:
        super().__init__(n_samples)
        del self.last
        self.last = torch.zeros(2, n_samples)


class KeepsItsStateToItself(SoundByStep):
    loss = _KeepsItsStateToItself


class _OverwritesWhatItRead(Momentum):
    """Contrasts with a row of earlier steps, and writes to the same tensor before the gradient is computed."""

    def __init__(self, n_samples: int) -> None:
        super().__init__(n_samples)
        self.register_buffer("earlier", torch.zeros(2, DIM))

    def forward(self, anchors: Anchors) -> Tensor:
        loss, row = super().forward(anchors), self.earlier[int(anchors.modality == "text")]
        if row.any():
            loss = loss + 0 * anchors.features @ row
        row += 1
        return loss


class OverwritesWhatItRead(SoundByStep):
    loss = _OverwritesWhatItRead


class HoldsALambda(Sound):
    def __init__(self) -> None:
        self.rule = lambda similarity: -similarity


class SaysItNeedsNone(Sound):
    requires_clusters = False


class ReadsWhatMayBeMissing(Sound):
    def __call__(self, clusters: Clusters) -> Any:
        return dataclasses.replace(super().__call__(clusters), groups=clusters.groups.clone())


class NeedsTwoClusters(Sound):
    def __call__(self, clusters: Clusters) -> Any:
        assert clusters.image.n_clusters > 1
        return super().__call__(clusters)


class Refuses(Sound):
    """A correct weighting that rejects clusters it cannot use."""

    def __call__(self, clusters: Clusters) -> Any:
        clusters.features_of("image", "this weighting")
        if clusters.image.n_clusters < 2:
            raise InputError("There must be at least 2 clusters, got 1.")
        return super().__call__(clusters)


BROKEN = {
    "global_generators_are_untouched": DrawsGlobally,
    "pickles": HoldsALambda,
    "terms_or_an_anchor_loss_is_returned": ReturnsATable,
    "tables_fit_their_labels": LacksATable,
    "log_weights_are_valid": WeighsByNan,
    "scalars_are_in_range": DebiasesByOne,
    "same_clusters_give_the_same_loss": SeedsItselfAnew,
    "clusters_are_not_modified": WritesToTheClusters,
    "loss_and_gradients_are_finite": Overflows,
    "a_batch_has_a_gradient": RemovesEveryPair,
    "order_in_the_batch_does_not_matter": WeighsByPlace,
    "works_without_clusters_if_declared": SaysItNeedsNone,
    "missing_features_are_accepted_or_rejected": ReadsWhatMayBeMissing,
    "one_cluster_is_accepted_or_rejected": NeedsTwoClusters,
    "anchor_loss_has_one_value_per_anchor": ReturnsAColumn,
    "anchors_of_one_process_match_all": IgnoresTheOffset,
    "state_is_in_state_dict": KeepsItsStateToItself,
    "later_steps_have_gradients": OverwritesWhatItRead,
}
SOUND = (Sound, SoundByStep, Refuses)
