"""PyTorch Lightning: a callback that wraps the loader, creates the loss, re-clusters with the model being trained, and logs.

Loaders yield ``(batch, samples)``, so the samples stay with their batch when Lightning prefetches or moves the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.clustering.fit import refresh_due
from clip_negatives.errors import InputError, MissingPackageError
from clip_negatives.host import registry
from clip_negatives.host.method import Method
from clip_negatives.integrations.loop import attach, sampling_context
from clip_negatives.learning_sampler import carry_over, observer_of
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.storage.clusters_folder import read_clusters
from clip_negatives.training.figures import batch_figures, cluster_figures, logged_figures
from clip_negatives.training.loss_parameters import LossParameters
from clip_negatives.training.method_state import MethodState, check_clusters
from clip_negatives.training.reclustering import encode_share, recluster_shares
from clip_negatives.training.temperature import check_temperature_of
from clip_negatives.training.weighting import loss_terms

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingPackageError.of("lightning", error) from error

NO_LOADER = "The callback has no loader yet. Return NegativesCallback.attach(loader) from train_dataloader()."

Encode = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""``encode(module, batch) -> (image features, text features)`` of a batch of the training loader, each of shape (B, D)."""


@dataclass(eq=False)
class NegativesCallback(Callback):
    """Callback for a negative sampler and a loss weighting.

    Pass it to `Trainer`, return the result of `attach` from ``train_dataloader``, and call `loss` in ``training_step``. With
    several processes, negatives come from all processes. Lightning's checkpoints hold the folder of the current clusters, the
    state of the loss, and the position within the epoch.

    Attributes:
        clusters: clusters folder of the training data.
        sampler: ``name`` or ``name:key=value,...`` of the negative sampler.
        weighting: ``name`` or ``name:key=value,...`` of the loss weighting.
        seed: seed of batches and clusterings; the same on every rank.
        backend: see `clip_negatives.losses.functional.weighted_info_nce`.
        refresh_every: epochs between two clusterings with the model being trained; None never re-clusters.
        encode: see `Encode`; called without gradients, in evaluation mode. Required with `refresh_every`.
        encoded_from: a loader of the training samples without augmentation, for `encode`; None is the attached loader.
        clusterer: ``name`` or ``name:key=value,...``, for re-clustering.
        text_clusterer: another clusterer for the texts.

    Raises:
        InputError: `refresh_every` is below 1, or `encode` is missing.
    """

    clusters: str | Path
    _: KW_ONLY
    sampler: str = Method.sampler
    weighting: str = Method.weighting
    seed: int = 0
    backend: str = "auto"
    refresh_every: int | None = None
    encode: Encode | None = None
    encoded_from: DataLoader[Any] | None = None
    clusterer: str = Recipe.clusterer
    text_clusterer: str | None = Recipe.text_clusterer

    def __post_init__(self) -> None:
        if self.refresh_every is not None and (self.refresh_every < 1 or self.encode is None):
            raise InputError(f"refresh_every must be at least 1 and needs encode=, got {self.refresh_every} and {self.encode}.")
        self._folder = Path(self.clusters)
        self._loader: IndexedLoader
        self._device = torch.device("cpu")
        self._loss: NegativesClipLoss | None = None
        self._parameters: LossParameters | None = None
        self._restored: dict[str, Tensor] = {}
        self._restored_digest = self._digest = ""  # of the clusters
        self._refreshed: int | None = None  # epoch of the last re-clustering of this process

    @property
    def loss(self) -> NegativesClipLoss:
        """Return the loss; call it as ``loss(image_features, text_features, logit_scale, samples=samples)``.

        Before `attach`, as in Lightning's sanity check, the loss can only evaluate; a training step is an `InputError`.
        """
        return self._loss or _LossWithoutLoader()

    def attach(self, loader: DataLoader[Any], **options: Any) -> IndexedLoader:
        """Return a loader that yields ``(batch, samples)``, with the batches of the sampler.

        Call this in ``train_dataloader``: before that, processes do not know their ranks. For `options` (``tokenize``,
        ``keys``, ``key_of``) and errors, see `clip_negatives.attach`.
        """
        previous = None if self._loss is None else (self._loss.anchor_loss, self._loader)
        options |= {"sampler": self.sampler, "weighting": self.weighting, "seed": self.seed, "backend": self.backend}
        self._loader, self._loss = attach(loader, self._folder, local_loss=True, gather_with_grad=True, **options)
        self._native, folder = loader, read_clusters(self._folder)
        self._clusters, self._context = folder.clusters, sampling_context(loader, folder, self.seed)
        check_clusters(self._restored_digest, folder.digest, "the checkpoint")
        self._restored_digest, self._digest = "", folder.digest
        if previous is not None:  # Lightning has loaded the data again
            self._loss.to(self._device)
            if previous[0] is not None and self._loss.anchor_loss is not None:
                self._loss.anchor_loss.take_state(previous[0])
            carry_over(previous[1].negatives, self._loader.negatives)
            self._loader.epochs = self._loader.epochs or previous[1].epochs
        elif self._restored:
            self._method_state().fill(self._restored, "the checkpoint")
        return self._loader

    def _method_state(self) -> MethodState:
        return MethodState(self.loss.anchor_loss, self._parameters, self._loader.negatives)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the loss to the device of the module, and log the sizes of the clusters."""
        if self._loss is None:
            raise InputError(NO_LOADER)
        check_temperature_of(pl_module, self.weighting)
        self._device = pl_module.device
        self.loss.to(self._device)
        if self.loss.anchor_loss is not None and any(True for _ in self.loss.anchor_loss.parameters()):
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            self._parameters = LossParameters(self.loss.anchor_loss, trainer.optimizers[0], schedulers)
        if self._restored:
            self._method_state().fill(self._restored, "the checkpoint")  # again, now with the optimizer
            self._restored = {}
        if self._loader.epochs is None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            self._loader.epochs = trainer.max_epochs
        if self._loader.epoch < trainer.current_epoch:
            # After a checkpoint of the last batch of an epoch, Lightning starts the next one without on_train_epoch_start.
            self.on_train_epoch_start(trainer, pl_module)
        _log(trainer, lambda: cluster_figures(self._clusters), trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Re-cluster if it is due, and set the epoch of the sampler; ``overfit_batches`` repeats the batches of epoch 0."""
        epoch = trainer.current_epoch
        if refresh_due(epoch, self.refresh_every) and self.encode is not None and self._refreshed != epoch:
            self._refresh(trainer, pl_module, self.encode)
            self._refreshed = epoch
        self._loader.set_epoch(0 if trainer.overfit_batches else epoch)  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the figures of the batch, as often as the trainer logs."""
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            terms = self.loss.anchor_loss or self.loss.terms
            figures = lambda: batch_figures(batch[1], self._clusters, terms) | logged_figures(self.loss.logged)  # noqa: E731
            _log(trainer, figures, max(0, trainer.global_step - 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the folder of the current clusters and the state of the loss."""
        state = {} if self._loss is None else self._method_state().tensors()
        return {
            "clusters": str(self._folder),
            "digest": self._digest,
            "loss": {name: buffer.cpu() for name, buffer in state.items()},
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remove the parameters of the loss from the schedulers: Lightning restores them before `on_train_start` adds these."""
        if (own := self._parameters) is not None and own.parameters:
            configs, states = trainer.lr_scheduler_configs, checkpoint.get("lr_schedulers", [])
            checkpoint["lr_schedulers"] = [
                own.without_own_group(state) if config.scheduler.optimizer is own.optimizer else state
                for config, state in zip(configs, states, strict=False)
            ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, before the loader is attached."""
        self._folder, self._restored = Path(state_dict["clusters"]), state_dict["loss"]
        self._restored_digest = state_dict.get("digest", "")

    def _refresh(self, trainer: Trainer, module: LightningModule, encode: Encode) -> None:
        """Cluster the features of the module, and use the new clusters for the next batches and weights."""
        root = Path(trainer.log_dir or trainer.default_root_dir).absolute()
        folder = root / "clip_negatives" / f"clusters-epoch-{trainer.current_epoch}"
        image, text = _features(trainer, module, self.encoded_from or self._native, encode)
        samples = read_clusters(self.clusters).samples
        options: dict[str, Any] = {"clusterer": self.clusterer, "text_clusterer": self.text_clusterer, "seed": self.seed}
        options |= {"epoch": trainer.current_epoch, "previous": self._clusters}
        self._clusters, self._folder = recluster_shares(image, text, samples, folder, **options), folder
        self._digest = read_clusters(folder).digest
        context = replace(self._context, clusters=self._clusters)
        sampler = registry.create("negative_sampler", self.sampler, context)
        carry_over(self._loader.negatives, sampler)
        self._loader.use(sampler)
        self.loss.observer = observer_of(sampler)
        self.loss.set_terms(loss_terms(self.weighting, self._clusters))
        self.loss.to(module.device)
        _log(trainer, lambda: cluster_figures(self._clusters), trainer.global_step)


class _LossWithoutLoader(NegativesClipLoss):
    """The loss before a loader is attached: it evaluates, and does not train."""

    def _training_loss(self, *given: Any) -> Tensor:
        raise InputError(NO_LOADER)


def _features(trainer: Trainer, module: LightningModule, loader: DataLoader[Any], encode: Encode) -> tuple[Tensor, Tensor]:
    """Return the features of this rank's share of the loader's samples, unit norm, float32."""

    def features(batch: Any) -> tuple[Tensor, Tensor]:
        with trainer.precision_plugin.forward_context():
            image, text = encode(module, trainer.strategy.batch_to_device(batch))
        return F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)

    batches: Any = loader.batch_sampler
    options: dict[str, Any] = {"batch_size": loader.batch_size or int(batches.batch_size), "num_workers": loader.num_workers}
    options |= {"collate_fn": loader.collate_fn, "rank": trainer.global_rank, "world_size": trainer.world_size}
    return encode_share(module, loader.dataset, features, **options)


def _log(trainer: Trainer, figures: Callable[[], dict[str, float]], step: int) -> None:
    """Compute and log figures, on rank 0 and only if there is a logger."""
    if trainer.is_global_zero and trainer.loggers:
        values = figures()
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
