"""The callback."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from clip_negatives import registry
from clip_negatives.artifacts import read_clusters
from clip_negatives.errors import InputError
from clip_negatives.integrations.figures import batch_figures, cluster_figures
from clip_negatives.integrations.lightning.encoding import Encode, encode_share
from clip_negatives.integrations.loop import attach, sampling_context
from clip_negatives.integrations.loss_state import fill_state, state_of
from clip_negatives.integrations.reclustering import recluster_shares
from clip_negatives.integrations.weighting import loss_terms
from clip_negatives.interfaces import Clusters, SamplingContext
from clip_negatives.loader import IndexedLoader
from clip_negatives.loss import NegativesClipLoss
from clip_negatives.refresh import refresh_due


class NegativesCallback(Callback):
    """Train with our negatives: give it to the `Trainer`, let ``train_dataloader`` return `attach`, and call `loss`.

    Several processes contrast the samples of all of them. What the callback knows (the clusters in use, what a loss remembers
    of the samples) is part of Lightning's checkpoints; so is the place within an epoch, which the loader keeps.

    Args:
        clusters: clusters folder of the training data.
        sampler: ``name`` or ``name:key=value,...``.
        weighting: the same.
        seed: seed of the batches and of clusterings; the same on every rank.
        backend: see `clip_negatives.functional.weighted_info_nce`.
        refresh_every: re-cluster with the model being trained before every so many epochs; None never does.
        encode: see `Encode`; called without gradients, in evaluation mode. Needed with `refresh_every`.
        encoded_from: a loader over the training samples without augmentation, for `encode`; None takes the attached one.
        clusterer: ``name`` or ``name:key=value,...``, to re-cluster with.
        text_clusterer: another one for the texts.

    Raises:
        InputError: `refresh_every` is below 1, or given without `encode`.
    """

    _native: DataLoader[Any]
    _loader: IndexedLoader
    _clusters: Clusters
    _context: SamplingContext

    def __init__(
        self,
        clusters: str | Path,
        *,
        sampler: str = "cluster_similarity",
        weighting: str = "weighted_infonce",
        seed: int = 0,
        backend: str = "auto",
        refresh_every: int | None = None,
        encode: Encode | None = None,
        encoded_from: DataLoader[Any] | None = None,
        clusterer: str = "kmeans",
        text_clusterer: str | None = None,
    ) -> None:
        if refresh_every is not None and (refresh_every < 1 or encode is None):
            raise InputError(
                f"Expected refresh_every of at least 1 epoch and encode beside it, got {refresh_every} and {encode}."
            )
        self.sampler, self.weighting = sampler, weighting
        self.seed, self.backend = seed, backend
        self.refresh_every, self.encode, self.encoded_from = refresh_every, encode, encoded_from
        self.clusterer, self.text_clusterer = clusterer, text_clusterer
        self._folder = self._first = Path(clusters)
        self._loss: NegativesClipLoss | None = None
        self._remembered: dict[str, Tensor] = {}

    @property
    def loss(self) -> NegativesClipLoss:
        """Return the loss, to be called ``loss(image_features, text_features, logit_scale, index=index)``.

        Raises:
            InputError: no loader was attached yet.
        """
        if self._loss is None:
            raise InputError("Expected a loader from NegativesCallback.attach, got none. Return it from train_dataloader().")
        return self._loss

    def attach(self, loader: DataLoader[Any]) -> IndexedLoader:
        """Return a loader that yields ``(batch, index)`` in our batches; call it in ``train_dataloader``, which knows ranks.

        Raises:
            ClipNegativesError: as `clip_negatives.attach`.
        """
        remembered = self._remembered if self._loss is None else state_of(self._loss.anchor_loss)
        how: dict[str, Any] = {"sampler": self.sampler, "weighting": self.weighting, "seed": self.seed, "backend": self.backend}
        how |= {"local_loss": True, "gather_with_grad": True, "index_in_batch": True}
        self._loader, self._loss = attach(loader, self._folder, **how)
        self._native, folder = loader, read_clusters(self._folder)
        self._clusters, self._context = folder.clusters, sampling_context(loader, folder, self.seed)
        if remembered:
            fill_state(self._loss.anchor_loss, remembered, "the checkpoint")
        return self._loader

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the loss to where the model is, and log the sizes of the clusters."""
        self.loss.to(pl_module.device)
        _log(trainer, lambda: cluster_figures(self._clusters), trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Re-cluster if it is time to, and choose the epoch of the sampler."""
        epoch = trainer.current_epoch
        if refresh_due(epoch, self.refresh_every):
            self._refresh(trainer, pl_module, epoch)
        self._loader.set_epoch(epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the figures of the batch, as often as the trainer logs."""
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            terms = self.loss.anchor_loss or self.loss.terms
            _log(trainer, lambda: batch_figures(batch[1], self._clusters, terms), max(0, trainer.global_step - 1))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the next epoch begin at its beginning, even where ``limit_train_batches`` ended this one early."""
        self._loader.load_state_dict({"batches": 0})

    def state_dict(self) -> dict[str, Any]:
        """Return the clusters that are in use, by their folder, and what the loss remembers of the samples."""
        state = {} if self._loss is None else state_of(self._loss.anchor_loss)
        return {"clusters": str(self._folder), "loss": {name: buffer.cpu() for name, buffer in state.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` returned, before the loader is attached."""
        self._folder, self._remembered = Path(state_dict["clusters"]), state_dict["loss"]

    def _refresh(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        """Cluster with the module, and take batches and weights from that."""
        loader, encode = self.encoded_from or self._native, self.encode
        if encode is None:
            return
        root = Path(trainer.log_dir or trainer.default_root_dir).absolute()
        folder = root / "clip_negatives" / f"clusters-epoch-{epoch}"
        found = recluster_shares(
            *encode_share(trainer, module, loader, encode),
            read_clusters(self._first).samples,
            folder,
            clusterer=self.clusterer,
            text_clusterer=self.text_clusterer,
            seed=self.seed,
            epoch=epoch,
        )
        self._folder = folder
        self._clusters = dataclasses.replace(found, texts=self._clusters.texts, groups=self._clusters.groups)
        context = dataclasses.replace(self._context, clusters=self._clusters)
        self._loader.use(registry.create("negative_sampler", self.sampler, context))
        self.loss.set_terms(loss_terms(self.weighting, self._clusters))
        self.loss.to(module.device)
        _log(trainer, lambda: cluster_figures(self._clusters), trainer.global_step)


def _log(trainer: Trainer, figures: Callable[[], dict[str, float]], step: int) -> None:
    """Hand figures to the loggers, computed in the first process alone and where there is a logger."""
    if trainer.is_global_zero and trainer.loggers:
        found = figures()
        for logger in trainer.loggers:
            logger.log_metrics(found, step=step)
