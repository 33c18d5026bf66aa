"""Replacements of functions of open_clip's training, in the order of their calls.

* ``get_data``: read the clusters, compare the records of all ranks, and wrap the training loader.
* ``create_loss``: create our loss, with the terms of the clusters.
* ``train_one_epoch``, for each epoch: re-cluster if it is due; train as open_clip does; before open_clip writes its checkpoint,
  check the weights and store the state of the method.

The loader calls `Negatives.observe` for each batch that it yields, to log figures.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from open_clip_train.train import unwrap_model

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.batches.streams import StreamLoader
from clip_negatives.clustering.fit import refresh_due
from clip_negatives.distributed.processes import ALONE, Processes
from clip_negatives.encoders.open_clip import ShortWords
from clip_negatives.errors import UnsupportedError
from clip_negatives.integrations.open_clip import run_record
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
from clip_negatives.integrations.open_clip.preflight import first_folder, terms_of, warn_of_newer_data
from clip_negatives.integrations.open_clip.recluster import recluster, stored_folder
from clip_negatives.integrations.open_clip.teacher import MovingAverage, Teacher, fixed_teacher
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.open_clip.train_set import place_of_files
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.learning_sampler import carry_over, observer_of
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.printing import log
from clip_negatives.step import BatchSamples
from clip_negatives.storage.labels_folder import ClustersOrLabels
from clip_negatives.storage.provenance import Record
from clip_negatives.training.loss_parameters import LossParameters
from clip_negatives.training.method_state import MethodState
from clip_negatives.training.reclustering import with_truth_of
from clip_negatives.training.temperature import hold_temperature
from clip_negatives.training.weighting import batch_keeps_pairs

# Functions of `open_clip_train.main` that we replace, in the training or in the rehearsal, with the parameters that we use.
EXPECTED = {
    "get_data": ("args", "preprocess_fns", "epoch", "tokenizer"),
    "create_loss": ("args",),
    "train_one_epoch": ("model", "data", "loss", "epoch", "optimizer"),
    "pt_load": ("file_path", "map_location"),
    "get_latest_checkpoint": ("path", "remote"),
    "parse_args": ("args",),
    "init_distributed_device": ("args",),
    "setup_logging": (),
    "random_seed": (),
}


def load_main() -> ModuleType:
    """Import open_clip's training, and check that it has the functions that we replace."""
    import open_clip_train.data
    import open_clip_train.main

    main: ModuleType = open_clip_train.main
    names = "url_opener", "tar_file_expander"
    missing = next((name for name in names if not hasattr(open_clip_train.data, name)), None)
    for name, parameters in EXPECTED.items():
        function = getattr(main, name, None)
        if not callable(function) or not set(parameters) <= set(inspect.signature(function).parameters):
            missing = f"{name}({', '.join(parameters)})"
    if missing is not None:
        release = version("open_clip_torch")
        raise UnsupportedError(f"open_clip_torch {release} has no {missing} in its training. Install open_clip_torch>=3.0,<4.")
    return main


class Negatives:
    """The replacements of one training run, created before ``open_clip_train.main`` is changed.

    `folder` has the clusters that the run starts with; None if the run needs no clusters, or if this rank reads them later.
    `record` is the provenance of the run without its clusters, and `warning` the warning of the check before a resume. When the
    run ends, it closes the context managers and callbacks in `run`.
    """

    def __init__(
        self, main: ModuleType, options: TrainOptions, folder: ClustersOrLabels | None, record: Record, warning: str = ""
    ) -> None:
        self.options, self.folder, self.run = options, folder, ExitStack()
        self._record, self._warning = record, warning
        self.run_folder: Path | None = None  # known from `get_data` on
        self._get_data, self._train_one_epoch = main.get_data, main.train_one_epoch
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
        self._agree(args, getattr(data["train"].dataloader, "dataset", None), epoch)
        if self.folder is not None and self.options.clusters is not None and args.rank == 0:
            warn_of_newer_data(self.folder, args)
        self._current = CurrentSamples(args.accum_freq, self.observe)
        self._data = data["train"] = TrainData(data["train"], args, self.options, self._current, self.folder)
        self._data.use(self._clusters)
        if "val" in data and kind_of(args, args.val_data) == "webdataset":
            read_captions(data["val"].dataloader, caption_field(args))
        return data

    def _agree(self, args: Any, dataset: Any, epoch: int) -> None:
        """Read the clusters on all ranks, and check that all ranks have the same data, clusters and settings."""
        processes = self._processes = Processes.current() if args.world_size > 1 else ALONE
        if kind_of(args) == "table":
            processes.together(lambda: run_record.check_dataset(self._record, dataset))
        start = processes.together(lambda: run_record.start_section(args, epoch))
        # Compared before the clusters are read: a rank with other data would not find the clusters of rank 0.
        run_record.check_processes({**self._record, "start": start}, processes)
        places = processes.gather(place_of_files(args))
        check_files = args.rank > 0 and places.index(places[args.rank]) == args.rank  # first process with these files
        self.folder = processes.together(lambda: self.folder or first_folder(args, self.options, check_files=check_files))
        self._record = processes.together(lambda: run_record.with_clusters(self._record, self.folder))
        run_record.check_processes(self._record, processes)
        self._clusters = None if self.folder is None else self.folder.clusters
        if (every := self.options.refresh_every) is not None:
            stored = processes.together(lambda: stored_folder(args, epoch, every, dataset))
            stored_digest = None if stored is None else stored.digest
            run_record.check_processes({"start": {"clusters_of_the_last_re-clustering": stored_digest}}, processes)
            self._clusters = self._clusters if stored is None else with_truth_of(self._clusters, stored.clusters)
        if not args.resume:
            self._store_record(args)
        if self._warning:
            log(self._warning)

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

    def train_one_epoch(
        self, model: Any, data: dict[str, Any], loss: Any, epoch: int, optimizer: Any, *rest: Any, **named: Any
    ) -> None:
        """Re-cluster if it is due, train the epoch as open_clip does, and store the state of the method."""
        args, options, tb_writer = self._args, self.options, named.get("tb_writer")
        first, refresh = epoch == self._start_epoch, refresh_due(epoch, options.refresh_every)
        if first and options.temperature is not None:
            hold_temperature(unwrap_model(model).logit_scale, options.temperature, optimizer)
        if first and tb_writer is not None:
            self.run.callback(tb_writer.close)
        digest = run_record.data_digest(self._record)
        if first:
            self._parameters = LossParameters(loss.anchor_loss, optimizer)
            self._processes.together(lambda: restore_state(self._method_state(loss), args, epoch, digest))
            self._start_teacher(model, optimizer)
        if refresh:
            self._refresh(model, loss, epoch)
        loss.observer = None if self._data.sampler is None else observer_of(self._data.sampler)
        if self._logged is not None:
            steps = self._data.dataloader.num_batches // args.accum_freq
            self._figures = EpochFigures(args, tb_writer, epoch, steps, self._clusters, self._logged, loss.logged)
            if first or refresh:
                self._figures.log_clusters()
        if first and epoch > 0:
            restore_random(args, epoch)
        store_random(args, epoch)
        self._train_one_epoch(model, data, loss, epoch, optimizer, *rest, **named)
        if self._figures is not None:
            self._figures.finish()
        self._check_stream()
        check_finite(model, epoch + 1)
        if first and args.resume:
            self._store_record(args)
        store_state(self._method_state(loss), args, epoch + 1, digest)
        store_teacher(self._teacher, args, epoch + 1)
        store_random(args, epoch + 1)

    def _start_teacher(self, model: Any, optimizer: Any) -> None:
        """Create the teacher, and let the loader call it."""
        args, options = self._args, self.options
        if options.ema is not None:
            self._teacher = MovingAverage(model, args, options.ema, optimizer)
        elif options.teacher is not None:
            self._teacher = self._processes.together(lambda: fixed_teacher(str(options.teacher), args))
        self._processes.together(lambda: restore_teacher(self._teacher, args, self._start_epoch))
        self._data.teacher = self._data.dataloader.teacher = self._teacher

    def _check_stream(self) -> None:
        """Check after an epoch of a stream that samples had labels."""
        if isinstance(loader := self._data.dataloader.loader, StreamLoader):
            loader.check_labelled(any(self._processes.gather(loader.any_labelled)))
            if loader.unlabelled:
                log(f"{loader.unlabelled} samples so far have no cluster labels; their pairs have weight 1")

    def _refresh(self, model: Any, loss: NegativesClipLoss, epoch: int) -> None:
        """Cluster with the model that is trained, and use the new clusters for the batches and the weights."""
        args, previous = self._args, self._data.sampler
        self._clusters = recluster(model, self._data.dataset, self._preprocess, args, self.options, epoch, self._clusters)
        self._data.use(self._clusters)
        if previous is not None and self._data.sampler is not None:
            carry_over(previous, self._data.sampler)
        loss.set_terms(self._terms().to(args.device))

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
        self._logged = terms if self._args.rank == 0 and (self._args.wandb or self._args.tensorboard) else None
        self._unchecked = terms if isinstance(terms, LossTerms) else None
        return terms
