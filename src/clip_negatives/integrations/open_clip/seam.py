"""Replacements of functions of open_clip's training, in the order of their calls.

* `Negatives.get_data`: read the clusters, compare the records of all ranks, and wrap the training loader.
* `Negatives.create_loss`: create our loss, with the terms of the clusters.
* `Negatives.train_epoch`, for each epoch: re-cluster if it is due; train as open_clip does; before open_clip writes its
  checkpoint, check the weights and store the state of the method.

The loader calls `Negatives.observe` for each batch that it yields, to log figures.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.clustering.fit import refresh_due
from clip_negatives.distributed.processes import ALONE, Processes
from clip_negatives.encoders.open_clip import ShortWords
from clip_negatives.integrations.open_clip import run_record
from clip_negatives.integrations.open_clip.adapter import Adapter, Epoch
from clip_negatives.integrations.open_clip.agreement import agree
from clip_negatives.integrations.open_clip.arguments import kind_of
from clip_negatives.integrations.open_clip.checkpoints import (
    check_finite,
    restore_random,
    restore_state,
    restore_teacher,
    store_random,
    store_state,
    store_teacher,
)
from clip_negatives.integrations.open_clip.data import TrainData, caption_field, read_captions
from clip_negatives.integrations.open_clip.hand_over import CurrentSamples
from clip_negatives.integrations.open_clip.loggers import EpochFigures
from clip_negatives.integrations.open_clip.preflight import terms_of, warn_of_newer_data
from clip_negatives.integrations.open_clip.recluster import recluster
from clip_negatives.integrations.open_clip.teacher import MovingAverage, Teacher, fixed_teacher
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.learning_sampler import carry_over, observer_of
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.printing import log
from clip_negatives.step import BatchSamples
from clip_negatives.storage.labels_folder import ClustersOrLabels
from clip_negatives.storage.provenance import Record
from clip_negatives.training.loss_parameters import LossParameters
from clip_negatives.training.method_state import MethodState
from clip_negatives.training.temperature import hold_temperature
from clip_negatives.training.weighting import batch_keeps_pairs


class Negatives:
    """The replacements of one training run, created before ``open_clip_train.main`` is changed.

    `folder` has the clusters that the run starts with; None if the run needs no clusters, or if this rank reads them later.
    `record` is the provenance of the run without its clusters, and `warning` the warning of the check before a resume. When the
    run ends, it closes the context managers and callbacks in `run`.
    """

    def __init__(
        self, adapter: Adapter, options: TrainOptions, folder: ClustersOrLabels | None, record: Record, warning: str = ""
    ) -> None:
        self.options, self.folder, self.run = options, folder, ExitStack()
        self._adapter, self._get_data = adapter, adapter.main.get_data
        self._record, self._warning = record, warning
        self.run_folder: Path | None = None  # known from `get_data` on
        self._clusters: Clusters | None = None
        self._figures: EpochFigures | None = None
        self._logged: LossTerms | AnchorLoss | None = None  # on the CPU, if figures are logged
        self._teacher: Teacher | None = None
        self._unchecked: LossTerms | None = None  # on the CPU, until the first batch

    def get_data(self, args: Any, preprocess_fns: Any, epoch: int = 0, tokenizer: Any = None) -> dict[str, Any]:
        """Return open_clip's data with its training loader wrapped."""
        tokenizer = None if tokenizer is None else ShortWords(tokenizer)
        data: dict[str, Any] = self._get_data(args, preprocess_fns, epoch=epoch, tokenizer=tokenizer)
        self._args, self._preprocess, self._start_epoch = args, preprocess_fns[1], epoch
        self.run_folder = Path(args.checkpoint_path).parent
        self._processes = Processes.current() if args.world_size > 1 else ALONE
        dataset = getattr(data["train"].dataloader, "dataset", None)
        start = args, self.options, self.folder, self._record, dataset, epoch, self._processes
        self.folder, self._record, self._clusters = agree(*start)
        if not args.resume:
            self._store_record(args)
        if self._warning:
            log(self._warning)
        if self.folder is not None and self.options.clusters is not None and args.rank == 0:
            warn_of_newer_data(self.folder, args)
        self._current = CurrentSamples(args.accum_freq, self.observe)
        self._data = data["train"] = TrainData(data["train"], args, self.options, self._adapter, self._current, self.folder)
        self._data.use(self._clusters)
        if "val" in data and kind_of(args, args.val_data) == "webdataset":
            read_captions(data["val"].dataloader, caption_field(args))
        return data

    def _store_record(self, args: Any) -> None:
        """Write the record. A resumed run calls this at its first checkpoint: until then the older record is right."""
        self._processes.together(lambda: run_record.store(self._record, args))

    def create_loss(self, args: Any) -> NegativesClipLoss:
        """Return our loss in place of `open_clip.ClipLoss`."""
        loss = NegativesClipLoss(
            args.local_loss,
            args.gather_with_grad,
            cache_labels=True,
            rank=args.rank,
            world_size=args.world_size,
            terms=self._terms(),
            batch_samples=self._current,
            backend=self.options.backend,
            **self._data.additions.loss_options(),
        ).to(args.device)
        log(f"sampler {self.options.sampler}, weighting {self.options.weighting}", logging.INFO)
        return loss

    def train_epoch(self, epoch: Epoch) -> None:
        """Re-cluster if it is due, train the epoch as open_clip does, and store the state of the method."""
        args, loss, number = self._args, epoch.loss, epoch.number
        first, refresh = number == self._start_epoch, refresh_due(number, self.options.refresh_every)
        digest = run_record.data_digest(self._record)
        if first:
            self._start(epoch, digest)
        if refresh:
            self._refresh(epoch)
        loss.observer = None if self._data.sampler is None else observer_of(self._data.sampler)
        if self._logged is not None:
            loggers = epoch.tb_writer, self._adapter.wandb(args)
            steps = self._data.dataloader.num_batches // args.accum_freq
            self._figures = EpochFigures(args, *loggers, number, steps, self._clusters, self._logged, loss.logged)
            if first or refresh:
                self._figures.log_clusters()
        if first and number > 0:
            restore_random(args, number)
        store_random(args, number)
        epoch.train()
        if self._figures is not None:
            self._figures.finish()
        self._data.check_labels(self._processes)
        check_finite(epoch.model, number + 1)
        if first and args.resume:
            self._store_record(args)
        store_state(self._method_state(loss), args, number + 1, digest)
        store_teacher(self._teacher, args, number + 1)
        store_random(args, number + 1)

    def _start(self, epoch: Epoch, digest: str) -> None:
        """Hold the temperature, and restore the state of a resumed run."""
        if self.options.temperature is not None:
            logit_scale: Any = epoch.model.logit_scale
            hold_temperature(logit_scale, self.options.temperature, epoch.optimizer)
        if epoch.tb_writer is not None:
            self.run.callback(epoch.tb_writer.close)
        self._parameters = LossParameters(epoch.loss.anchor_loss, epoch.optimizer)
        state = self._method_state(epoch.loss)
        self._processes.together(lambda: restore_state(state, self._args, epoch.number, digest))
        self._start_teacher(epoch.model, epoch.optimizer)

    def _start_teacher(self, model: Any, optimizer: Any) -> None:
        """Create the teacher, and let the loader call it."""
        args, options = self._args, self.options
        if options.ema is not None:
            self._teacher = MovingAverage(model, args, options.ema, optimizer)
        elif options.teacher is not None:
            self._teacher = self._processes.together(lambda: fixed_teacher(str(options.teacher), args))
        self._processes.together(lambda: restore_teacher(self._teacher, args, self._start_epoch))
        self._data.teacher = self._data.dataloader.teacher = self._teacher

    def _refresh(self, epoch: Epoch) -> None:
        """Cluster with the model that is trained, and use the new clusters for the batches and the weights."""
        args, dataset, previous = self._args, self._data.dataset, self._data.sampler
        self._clusters = recluster(epoch.model, dataset, self._preprocess, args, self.options, epoch.number, self._clusters)
        self._data.use(self._clusters)
        if previous is not None and self._data.sampler is not None:
            carry_over(previous, self._data.sampler)
        epoch.loss.set_terms(self._terms().to(args.device))

    def _method_state(self, loss: NegativesClipLoss) -> MethodState:
        return MethodState(loss.anchor_loss, self._parameters, self._data.sampler)

    def observe(self, samples: BatchSamples) -> None:
        """Log the figures of a batch, and call `on_batch`. After the first batch, warn if no incorrect pair is left in it."""
        if self._unchecked is not None and not batch_keeps_pairs(self._unchecked, samples):
            log(
                f"the weighting {self.options.weighting} removes all incorrect pairs of the first batch of the "
                f"sampler {self.options.sampler} on this process; the model learns nothing from such batches"
            )
        self._unchecked = None
        if self.options.on_batch is not None:
            self.options.on_batch(samples)
        if self._figures is not None:
            self._figures.count(self._current)

    def _terms(self) -> LossTerms | AnchorLoss:
        """Return the terms of the current clusters, and store them for `observe`."""
        terms = terms_of(self.folder, self._clusters, self.options)
        is_logged = self._args.tensorboard or self._adapter.wandb(self._args) is not None
        self._logged = terms if self._args.rank == 0 and is_logged else None
        self._unchecked = terms if isinstance(terms, LossTerms) else None
        return terms
