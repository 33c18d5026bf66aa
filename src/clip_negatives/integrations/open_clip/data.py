"""open_clip's training data in the batches of a negative sampler, with the samples of each batch passed to the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import IterableDataset

from clip_negatives.batches.extras import Additions, Captions
from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.batches.streams import CaptionStage, LabelStage, StreamLoader, TextStage
from clip_negatives.dataset.urls import expand_urls
from clip_negatives.distributed.processes import Processes
from clip_negatives.errors import UnsupportedError
from clip_negatives.integrations.open_clip.adapter import SERVED, Adapter
from clip_negatives.integrations.open_clip.arguments import OPTIONS
from clip_negatives.integrations.open_clip.hand_over import CurrentSamples, HandOver
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.interfaces import Clusters, NegativeSampler, SamplingContext
from clip_negatives.printing import log
from clip_negatives.step import Towers
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.labels_folder import ClustersOrLabels, LabelsFolder
from clip_negatives.storage.shards import KnownShards, ShardRows
from clip_negatives.training.same_files import warn_of_uncompared_shards

TAR_STAGES = ("tarfile_to_samples", "tarfile_samples")  # of open_clip for training, of webdataset for validation


@dataclass
class TrainData:
    """Training data in place of open_clip's ``DataInfo``: it has ``dataloader`` and ``set_epoch``."""

    info: Any  # open_clip's DataInfo
    args: Any
    options: TrainOptions
    adapter: Adapter
    current: CurrentSamples  # passes the samples of each batch to the loss
    folder: ClustersOrLabels | None
    dataloader: Any = None  # yields open_clip's batches, and has the counts num_batches and num_samples that open_clip reads
    teacher: Callable[[Any], Towers] | None = None  # returns the features of a batch by another model
    additions: Additions = field(default_factory=Additions)  # what the sampler adds to each sample

    @property
    def dataset(self) -> Any:
        """Return open_clip's data set, or None for a stream."""
        dataset = getattr(self.info.dataloader, "dataset", None)
        return None if isinstance(dataset, IterableDataset) else dataset

    @property
    def sampler(self) -> NegativeSampler | None:
        """Return the negative sampler, or None for a stream."""
        loader = self.dataloader.loader
        return loader.negatives if isinstance(loader, IndexedLoader) else None

    def use(self, clusters: Clusters | None) -> None:
        """Create the loader for these clusters."""
        native, args = self.info.dataloader, self.args
        if self.dataset is None:
            self.dataloader = HandOver(self._stream(native), self.current, args.epochs, self.adapter.as_batch)
            read_captions(native, caption_field(self.args))
            self.dataloader.num_batches = native.num_batches
        else:
            captions: Any = getattr(self.dataset, "captions", None)
            if isinstance(self.folder, ClustersFolder):
                captions = Captions(self.folder.samples)
            sizes = len(self.dataset), args.batch_size, args.rank, args.world_size
            context = SamplingContext(*sizes, args.seed, clusters, native.batch_sampler, captions, args.epochs)
            sampler = self.options.create_sampler(context)
            self.additions = Additions.of(sampler)
            loader = IndexedLoader(native, sampler, getattr(self.dataset, "tokenize", None))
            self.dataloader = HandOver(loader, self.current, args.epochs, self.adapter.as_batch)
            self.dataloader.num_batches = len(loader)
        self.dataloader.num_samples = native.num_samples
        self.dataloader.teacher = self.teacher

    def _stream(self, native: Any) -> StreamLoader:
        if isinstance(self.folder, LabelsFolder):
            shards: KnownShards = self.folder.shards
            self._add_to_batches(native, ("__labels__",), LabelStage(self.folder.shards))
            loader = StreamLoader(native, is_alone=self.args.world_size == 1)
        elif self.folder is None:
            self._add_to_batches(native, ("__key__",))
            return StreamLoader(native)
        else:
            rows = ShardRows.of(self.folder)
            stage = TextStage(rows.shards, rows.left_out(self.folder.broken))
            self._add_to_batches(native, ("__url__", "__key__", "__text__"), stage)
            shards, loader = rows.shards, StreamLoader(native, rows)
        if self.args.rank == 0:
            warn_of_uncompared_shards(shards, expand_urls(self.args.train_data))
        return loader

    def _add_to_batches(self, loader: Any, entries: tuple[str, ...], stage: LabelStage | TextStage | None = None) -> None:
        """Append entries of the samples to each batch of a stream. The order of the samples does not change.

        `stage` adds the entries to the samples, right after the tars are read; None if the samples have them already.
        """
        stages = loader.pipeline[0].dataset.pipeline
        if not self.adapter.keep_entries(stages, entries):
            raise _unknown_stream()
        if stage is not None:
            stages.insert(_place_after_tars(stages), stage)

    def check_labels(self, processes: Processes) -> None:
        """Check after an epoch of a stream that samples had labels."""
        if isinstance(loader := self.dataloader.loader, StreamLoader):
            loader.check_labelled(any(processes.gather(loader.any_labelled)))
            if loader.unlabelled:
                log(f"{loader.unlabelled} samples so far have no cluster labels; their pairs have weight 1")

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of open_clip's own sampler or stream, and of our sampler."""
        self.info.set_epoch(epoch)
        self.dataloader.epoch = epoch
        if isinstance(self.dataloader.loader, IndexedLoader):
            self.dataloader.loader.set_epoch(epoch)


def caption_field(args: Any) -> str | None:
    """Return the ending or json field of the captions of tars; None for the ``.txt``."""
    return args.csv_caption_key or None


def read_captions(loader: Any, field: str | None) -> None:
    """Insert a `CaptionStage` into a stream, before the stages that read captions."""
    stages = loader.pipeline[0].dataset.pipeline
    place = _place_after_tars(stages)
    if not isinstance(stages[place], CaptionStage):
        stages.insert(place, CaptionStage(field, OPTIONS["text"]))


def _place_after_tars(stages: list[Any]) -> int:
    """Return the place after the stage that reads the tars."""
    names = [getattr(getattr(stage, "f", stage), "__name__", "") for stage in stages]
    places = [place for place, name in enumerate(names) if name.startswith(TAR_STAGES)]
    if len(places) != 1:
        raise _unknown_stream()
    return places[0] + 1


def _unknown_stream() -> UnsupportedError:
    return UnsupportedError(f"The webdataset stream of this open_clip has unknown stages. Install {SERVED}.")
