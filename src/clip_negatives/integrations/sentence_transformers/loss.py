"""The ranking loss with weights on the in-batch negatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers.util import cos_sim
from torch import Tensor, nn
from torch import distributed as dist

from clip_negatives.artifacts import read_clusters
from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.integrations.loss_state import state_of
from clip_negatives.integrations.weighting import loss_terms
from clip_negatives.loss import NegativesClipLoss

ONE_WAY, BOTH_WAYS = ("query_to_doc",), ("query_to_doc", "doc_to_query")
"""Directions that are served."""


class NegativesRankingLoss(nn.Module):
    """Compute `sentence_transformers.losses.MultipleNegativesRankingLoss` with weights on the in-batch negatives.

    With the weighting ``uniform`` it is that loss. Columns beyond the second are hard negatives, as there: every query is told
    from all of them, unweighted. Where no gradients are asked for, as in evaluation, nothing is weighted.

    Args:
        model: the model that is trained.
        scale: factor of the cosines.
        similarity_fct: cosine similarity; there is no other here.
        gather_across_devices: contrast with the samples of all processes.
        directions: ``("query_to_doc",)``, or with ``"doc_to_query"`` the mean of both.
        partition_mode: "joint" or, for both directions, "per_direction".
        clusters: clusters folder of the training data.
        weighting: ``name`` or ``name:key=value,...``.
        backend: see `clip_negatives.functional.weighted_info_nce`.

    Raises:
        UnsupportedError: another similarity or other directions are asked for, or a weighting that remembers samples, for which
            the trainer's checkpoints have no place.
        ClipNegativesError: the folder cannot be read, or there is no such weighting.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        gather_across_devices: bool = False,
        directions: tuple[str, ...] = ONE_WAY,
        partition_mode: str = "joint",
        *,
        clusters: str | Path,
        weighting: str = "weighted_infonce",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if similarity_fct is not cos_sim:
            raise UnsupportedError(f"Expected the similarity cos_sim, got {similarity_fct}. Leave similarity_fct out.")
        served = {("joint", ONE_WAY), ("per_direction", ONE_WAY), ("per_direction", BOTH_WAYS)}
        if (partition_mode, tuple(sorted(directions, reverse=True))) not in served:
            raise UnsupportedError(
                f"Expected directions {ONE_WAY}, or {BOTH_WAYS} with partition_mode 'per_direction', got {directions} with "
                f"{partition_mode!r}. Train others with MultipleNegativesRankingLoss."
            )
        self.model = model
        self.scale = scale
        self.gather_across_devices = gather_across_devices
        self.directions = tuple(directions)
        self.partition_mode = partition_mode
        self.weighting = weighting
        how: dict[str, Any] = {"text_anchors": len(directions) == 2, "backend": backend}
        how |= {"local_loss": True, "gather_with_grad": True}
        terms = loss_terms(weighting, read_clusters(clusters).clusters)
        self.weighted, self.unweighted = NegativesClipLoss(terms=terms, **how), NegativesClipLoss(**how)
        self._looked_at = False
        if state_of(self.weighted.anchor_loss):
            raise UnsupportedError(
                f"Expected a weighting that remembers nothing of the samples, as only the model is stored, got {weighting}. "
                "Take another."
            )

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch.

        Args:
            sentence_features: what the model takes, for each column.
            labels: index of each sample, int64, shape (B,): the column that `with_index` adds.

        Raises:
            InputError: the index is missing or is something else.
            UnsupportedError: there are hard negatives, and the weighting is handed all logits of a batch.
        """
        queries, positives, *negatives = (
            F.normalize(self.model(features)["sentence_embedding"], dim=-1) for features in sentence_features
        )
        loss = self.weighted if torch.is_grad_enabled() else self.unweighted
        index = self._index(labels, len(queries)) if torch.is_grad_enabled() else None
        if negatives and loss.anchor_loss is not None:
            raise UnsupportedError(
                f"Expected pairs without hard negatives for {self.weighting}, which is handed all logits of a batch, got "
                f"{len(negatives)} more columns. Leave them out, or take weighted_infonce."
            )
        loss.extra_texts = len(negatives)  # known only here
        if self.gather_across_devices and dist.is_initialized():
            loss.rank, loss.world_size = dist.get_rank(), dist.get_world_size()
        documents = torch.stack([positives, *negatives], dim=1).flatten(0, 1)
        found: Tensor = loss(queries, documents, self.scale, index=index)
        return found

    def _index(self, labels: Tensor | None, n: int) -> Tensor:
        """Return the labels, once they look like the index; that is looked at in the first batch, as it waits for a GPU."""
        known = self.weighted.terms.n_samples
        sound = labels is not None and labels.shape == (n,) and labels.dtype == torch.int64
        if sound and labels is not None and not self._looked_at:
            sound = len(labels.unique()) == n and int(labels.min()) >= 0 and (known is None or int(labels.max()) < known)
        if labels is None or not sound:
            got = "none" if labels is None else f"labels {labels.tolist()[:8]} ..."
            raise InputError(
                f"Expected the index of each sample as its label, got {got}. Train on with_index(dataset), of the data that "
                "were clustered."
            )
        self._looked_at = True
        return labels

    def get_config_dict(self) -> dict[str, Any]:
        """Return what the trainer writes into the model card."""
        names = ("scale", "gather_across_devices", "directions", "partition_mode", "weighting")
        return {name: getattr(self, name) for name in names}
