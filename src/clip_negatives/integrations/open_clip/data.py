"""open_clip's training data, with batches from a negative sampler and their index for the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import webdataset
from open_clip_train.data import expand_urls
from torch.utils.data import IterableDataset

from clip_negatives import registry
from clip_negatives.errors import UnsupportedError
from clip_negatives.extra_texts import Captions, texts_per_image
from clip_negatives.interfaces import Clusters, SamplingContext
from clip_negatives.keyed_loader import KeyedLoader, LabelledLoader, LabelStage
from clip_negatives.labels import LabelsFolder, TrainedOn
from clip_negatives.loader import BatchIndex, IndexedLoader


class CountedLoader:
    """Carry the two counts that open_clip reads off a loader.

    Attributes:
        loader: yields ``(images, texts)``.
        num_batches: batches of an epoch on this rank.
        num_samples: samples of the data set.
    """

    def __init__(self, loader: IndexedLoader | KeyedLoader | LabelledLoader, num_batches: int, num_samples: int) -> None:
        self.loader = loader
        self.num_batches = num_batches
        self.num_samples = num_samples

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        """Yield ``(images, texts)``."""
        return iter(self.loader)


class TrainData:
    """Stand for open_clip's ``DataInfo`` of the training data: it has ``dataloader`` and ``set_epoch``.

    `extra_texts` is how many texts the sampler adds for each sample.

    Args:
        info: open_clip's own.
        args: open_clip's arguments.
        sampler: ``name`` or ``name:key=value,...``.
        batch_index: where the loss reads the index of a batch.
        folder: the clusters folder, whose keys name the samples of a stream, or a labels folder of one.
    """

    def __init__(self, info: Any, args: Any, sampler: str, batch_index: BatchIndex, folder: TrainedOn | None) -> None:
        self._info, self._args, self._sampler = info, args, sampler
        self._batch_index, self._folder = batch_index, folder
        self.dataset = info.dataloader.dataset if is_indexable(info) else None
        self.dataloader: CountedLoader
        self.extra_texts = 0

    def use(self, clusters: Clusters | None) -> None:
        """Build the loader for these clusters."""
        native = self._info.dataloader
        if self.dataset is None:
            self.dataloader = CountedLoader(self._stream(native), native.num_batches, native.num_samples)
            return
        if isinstance(self._folder, LabelsFolder):
            raise UnsupportedError(
                f"Expected a webdataset stream for the labels folder {self._folder.path}, got data that are read by index. "
                "Name the clusters folder."
            )
        context = SamplingContext(
            n_samples=len(self.dataset),
            batch_size=self._args.batch_size,
            rank=self._args.rank,
            world_size=self._args.world_size,
            seed=self._args.seed,
            clusters=clusters,
            native_batches=native.batch_sampler,
            captions=getattr(self.dataset, "captions", None) if self._folder is None else Captions(self._folder.samples),
        )
        sampler = registry.create("negative_sampler", self._sampler, context)
        self.extra_texts = texts_per_image(sampler)
        loader = IndexedLoader(native, sampler, self._batch_index, getattr(self.dataset, "tokenize", None))
        self.dataloader = CountedLoader(loader, len(loader), native.num_samples)

    def _stream(self, native: Any) -> KeyedLoader | LabelledLoader:
        """Return the stream with what the loss is to know of its samples."""
        if isinstance(self._folder, LabelsFolder):
            self._folder.shards.check(expand_urls(self._args.train_data)[0])
            _carry(native, "__labels__", LabelStage(self._folder.shards))
            return LabelledLoader(native, self._batch_index)
        table = None if self._folder is None else self._folder.samples
        rows = None if table is None else {key: row for row, key in enumerate(table["key"].to_pylist())}
        _carry(native, "__key__")
        return KeyedLoader(native, rows, self._batch_index)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, of open_clip's own sampler or stream and of ours."""
        self._info.set_epoch(epoch)
        if isinstance(self.dataloader.loader, IndexedLoader):
            self.dataloader.loader.set_epoch(epoch)


def is_indexable(info: Any) -> bool:
    """Return whether the data can be asked for a sample by index, as csv can and a webdataset stream cannot."""
    dataset = getattr(info.dataloader, "dataset", None)
    return dataset is not None and not isinstance(dataset, IterableDataset)


def _carry(loader: Any, field: str, stage: LabelStage | None = None) -> None:
    """Let the stream carry a field through its last stages; the order and the randomness of the stream stay the same.

    Args:
        loader: open_clip's.
        field: what the batches are to have as their last entry.
        stage: makes the field, right after the tars are read; None where the samples have it.

    Raises:
        UnsupportedError: the stages of the stream are not those of open_clip 3.x.
    """
    stages = loader.pipeline[0].dataset.pipeline
    names = [getattr(getattr(one, "f", one), "__name__", "") for one in stages]
    tars = [place for place, name in enumerate(names) if name.startswith("tarfile_to_samples")]
    last = [place for place, name in enumerate(names) if name == "_to_tuple"]
    if len(last) != 1 or (stage is not None and len(tars) != 1):
        raise UnsupportedError(
            "Expected open_clip's webdataset stream to read tars and to end in to_tuple('image', 'text'), got another. "
            "Install open_clip_torch>=3.0,<4."
        )
    if stages[last[0]].args == ("image", "text"):
        stages[last[0]] = webdataset.to_tuple("image", "text", field)
        if stage is not None:
            stages.insert(tars[0] + 1, stage)
