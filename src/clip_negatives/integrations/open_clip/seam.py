"""The seam: four functions that open_clip's training looks up by name, replaced while it runs.

``open_clip_train.main`` calls ``get_data``, ``create_loss``, ``train_one_epoch`` and ``pt_load``, each found in its own
namespace. What else is touched is named in `installed`: on CPUs distributed training is mended (`cpu_ddp`), and images and
tars are read with care (`untrusted`). All is put back when training ends. What this relies on is looked for first, so that a
version in which it moved gives an error and not another training.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import open_clip
from torch import Tensor

from clip_negatives.anchors import AnchorLoss
from clip_negatives.dataset.source import allow_pixels
from clip_negatives.encoders.open_clip import MODELS
from clip_negatives.encoders.words import ShortWords
from clip_negatives.errors import UnsupportedError
from clip_negatives.integrations.open_clip.checkpoints import check_finite
from clip_negatives.integrations.open_clip.cpu_ddp import cpu_ddp
from clip_negatives.integrations.open_clip.data import CountedLoader, TrainData
from clip_negatives.integrations.open_clip.loggers import EpochFigures, is_logged
from clip_negatives.integrations.open_clip.loss_state import restore_state, store_state
from clip_negatives.integrations.open_clip.preflight import late_folder, terms_of
from clip_negatives.integrations.open_clip.recluster import recluster, stored_clusters
from clip_negatives.integrations.open_clip.same_data import tell_of_newer_data
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.open_clip.untrusted import limited_tars, load_checkpoint, no_ghostscript
from clip_negatives.integrations.weighting import batch_keeps_pairs
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.labels import TrainedOn
from clip_negatives.loader import BatchIndex
from clip_negatives.loss import NegativesClipLoss
from clip_negatives.pulse import watched
from clip_negatives.refresh import refresh_due
from clip_negatives.temperature import hold_temperature

EXPECTED = {
    "get_data": ("args", "preprocess_fns", "epoch", "tokenizer"),
    "create_loss": ("args",),
    "train_one_epoch": ("model", "data", "loss", "epoch", "optimizer"),
    "pt_load": ("file_path", "map_location"),
}
"""The functions that are replaced, and the parameters that each must have."""


def load_main() -> ModuleType:
    """Import open_clip's training and look for what the seam relies on; make our model configurations known to it.

    Raises:
        UnsupportedError: this version of open_clip has another structure.
    """
    import open_clip_train.main as main

    checked: ModuleType = main

    release = version("open_clip_torch")
    for name, parameters in EXPECTED.items():
        function = getattr(main, name, None)
        found = inspect.signature(function).parameters if callable(function) else {}
        if not set(parameters) <= set(found):
            raise UnsupportedError(
                f"Expected open_clip_torch 3.x, whose training has {name}({', '.join(parameters)}), got {release} without it. "
                "Install open_clip_torch>=3.0,<4."
            )
    open_clip.add_model_config(MODELS)
    return checked


@contextmanager
def installed(main: ModuleType, negatives: Negatives) -> Iterator[None]:
    """Let `negatives` stand in for open_clip's functions, and put them back at the end."""
    allow_pixels()
    originals = {name: getattr(main, name) for name in EXPECTED}
    try:
        for name in EXPECTED:
            setattr(main, name, getattr(negatives, name))
        with cpu_ddp(), no_ghostscript(), limited_tars(), negatives.run:
            yield
    finally:
        for name, function in originals.items():
            setattr(main, name, function)


class Negatives:
    """Stand in for the functions of one training run.

    Args:
        main: the module ``open_clip_train.main``, not yet changed.
        options: which negatives.
        folder: the clusters to start from; None where nothing needs clusters, and on ranks that read them later.
        needs_clusters: whether clusters are needed.
    """

    pt_load = staticmethod(load_checkpoint)
    """Stands in for open_clip's own, which before torch 2.6 runs what a checkpoint holds."""

    def __init__(self, main: ModuleType, options: TrainOptions, folder: TrainedOn | None, *, needs_clusters: bool) -> None:
        self.options = options
        self.folder = folder
        self._needs_clusters = needs_clusters
        self._get_data = main.get_data
        self._train_one_epoch = main.train_one_epoch
        self._batch_index = BatchIndex()
        self._clusters: Clusters | None = None
        self._args: Any = None
        self._start_epoch = 0
        self._preprocess: Any = None
        self._held = False
        self._extra_texts = 0
        self._figures: EpochFigures | None = None
        self._logged: LossTerms | AnchorLoss | None = None  # what the loss makes of the clusters, on the CPU
        self._untried: LossTerms | None = None  # the same, until a batch is handed out
        self.run = ExitStack()  # what lasts until the run ends

    def get_data(self, args: Any, preprocess_fns: Any, epoch: int = 0, tokenizer: Any = None) -> dict[str, Any]:
        """Return open_clip's data with its training loader wrapped."""
        self.run.enter_context(watched(args.rank, args.world_size))
        tokenizer = None if tokenizer is None else ShortWords(tokenizer)
        data: dict[str, Any] = self._get_data(args, preprocess_fns, epoch=epoch, tokenizer=tokenizer)
        if "train" not in data:
            return data
        self._args, self._preprocess, self._start_epoch = args, preprocess_fns[1], epoch
        self._batch_index = BatchIndex(args.accum_freq, self._on_batch)
        if self._needs_clusters:
            self.folder = self.folder or late_folder(args, self.options)
            self._clusters = self.folder.clusters
            if self.options.clusters is not None and args.rank == 0:
                tell_of_newer_data(self.folder, args)
        if self.options.refresh_every is not None and epoch > 0:
            self._clusters = self._with_ids(stored_clusters(args, epoch, self.options.refresh_every))
        data["train"] = TrainData(data["train"], args, self.options.sampler, self._batch_index, self.folder)
        data["train"].use(self._clusters)
        self._extra_texts = data["train"].extra_texts
        return data

    def create_loss(self, args: Any) -> NegativesClipLoss:
        """Return our loss in the place of `open_clip.ClipLoss`."""
        loss = NegativesClipLoss(
            local_loss=args.local_loss,
            gather_with_grad=args.gather_with_grad,
            cache_labels=True,
            rank=args.rank,
            world_size=args.world_size,
            use_horovod=args.horovod,
            terms=self._terms(self._clusters),
            batch_index=self._batch_index,
            extra_texts=self._extra_texts,
            text_ids=self._batch_index.text_ids,
            backend=self.options.backend,
        ).to(args.device)
        restore_state(loss.anchor_loss, args, self._start_epoch)
        logging.info(f"clip-negatives: sampler {self.options.sampler}, weighting {self.options.weighting}")
        return loss

    def train_one_epoch(
        self, model: Any, data: dict[str, Any], loss: Any, epoch: int, optimizer: Any, *rest: Any, **named: Any
    ) -> None:
        """Re-cluster if it is time to, then train the epoch as open_clip does."""
        self._hold_temperature(model, optimizer)
        if refresh_due(epoch, self.options.refresh_every):
            found = recluster(model, data["train"].dataset, self._preprocess, self._args, self.options, epoch)
            self._clusters = self._with_ids(found)
            data["train"].use(self._clusters)
            loss.set_terms(self._terms(self._clusters).to(self._args.device))
            self._figures = None
        self._begin_figures(data["train"].dataloader, epoch, named.get("tb_writer"))
        self._train_one_epoch(model, data, loss, epoch, optimizer, *rest, **named)
        if unlabelled := getattr(data["train"].dataloader.loader, "unlabelled", 0):
            logging.warning(f"clip-negatives: {unlabelled} samples so far had no labels; their pairs counted as they are")
        check_finite(model, epoch + 1)
        store_state(loss.anchor_loss, self._args, epoch + 1)

    def _hold_temperature(self, model: Any, optimizer: Any) -> None:
        """Hold the temperature, if asked, from the first epoch that is trained here."""
        from open_clip_train.train import unwrap_model

        if self.options.temperature is not None and not self._held:
            hold_temperature(unwrap_model(model).logit_scale, self.options.temperature, optimizer)
            self._held = True

    def _begin_figures(self, loader: CountedLoader, epoch: int, tb_writer: Any) -> None:
        """Log what there is to say of the clusters, when they are new, and of the batches that follow."""
        if self._logged is None or self._clusters is None:
            return
        new = self._figures is None
        self._figures = EpochFigures(self._args, tb_writer, epoch, loader.num_batches, self._clusters, self._logged)
        if new:
            self._figures.log_clusters()

    def _on_batch(self, index: Tensor) -> None:
        """Take note of a batch that is handed out."""
        if self._untried is not None and not batch_keeps_pairs(self._untried, index):
            logging.warning(
                f"clip-negatives: {self.options.weighting} removes all incorrect pairs of the first batch that "
                f"{self.options.sampler} composed, on this process; where that goes on, nothing is learned"
            )
        self._untried = None
        if self.options.on_batch is not None:
            self.options.on_batch(index)
        if self._figures is not None:
            self._figures.take(self._batch_index)

    def _with_ids(self, clusters: Clusters | None) -> Clusters | None:
        """Return clusters made during training with what the first ones knew of texts and groups; None gives the first."""
        if clusters is None or self._clusters is None:
            return clusters or self._clusters
        return dataclasses.replace(clusters, texts=self._clusters.texts, groups=self._clusters.groups)

    def _terms(self, clusters: Clusters | None) -> LossTerms | AnchorLoss:
        terms = terms_of(self.folder, clusters, self.options.weighting)
        self._logged = terms if is_logged(self._args) else None
        self._untried = terms if isinstance(terms, LossTerms) else None
        return terms
