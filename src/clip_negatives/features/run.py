"""Encode a data set step by step, each of them on all processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import Progress
from threadpoolctl import threadpool_limits
from torch import Tensor

from clip_negatives import __version__
from clip_negatives.artifacts import BROKEN, FEATURES, SAMPLES
from clip_negatives.atomic import changing, replaced_file
from clip_negatives.dataset import PairSource
from clip_negatives.dataset.source import fingerprint_of
from clip_negatives.encoders import Encoder
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.features.assembly import check_keys, evenly, write_features, write_samples
from clip_negatives.features.encoding import CHUNK, Advance, encode_images, encode_texts, texts_of
from clip_negatives.features.store import Store
from clip_negatives.processes import HaltedError, Processes
from clip_negatives.reading import read_tensors

T = TypeVar("T")

LEARNED_ON = 100_000
"""Texts, evenly spaced over the data, that an encoder learns its vocabulary from: from so many on, up to twice as many."""

DTYPES = {"float32": torch.float32, "float16": torch.float16}
"""What features are kept as."""


@dataclass(frozen=True)
class Encoded:
    """Hold what `encode` made, the same on every process.

    Attributes:
        folder: where the files are: ``samples.parquet``, ``features.safetensors`` and, where samples are broken,
            ``broken.parquet``.
        aside: a folder beside it, made by whoever uses it, for what is made of these features and should stay for the next
            call.
        fingerprint: that of the data.
        n_samples: N.
        n_broken: samples that were left out.
    """

    folder: Path
    aside: Path
    fingerprint: str
    n_samples: int
    n_broken: int

    @property
    def files(self) -> list[Path]:
        """Return the files but the features."""
        return [self.folder / name for name in (SAMPLES, BROKEN) if (self.folder / name).exists()]

    @property
    def features_file(self) -> Path:
        """Return the file of the features."""
        return self.folder / FEATURES

    @property
    def image(self) -> Tensor:
        """Return the features of the images, unit norm or zero, shape (N, D_image), memory-mapped."""
        return self._features["image"]

    @property
    def text(self) -> Tensor:
        """Return those of the texts, shape (N, D_text), memory-mapped."""
        return self._features["text"]

    def unmap(self) -> None:
        """Let go of the features: some file systems keep a folder in which a file is open."""
        self.__dict__.pop("_features", None)

    @cached_property
    def _features(self) -> dict[str, Tensor]:
        return read_tensors(self.features_file)


class Encoding:
    """Encode one data set; the arguments are those of `clip_negatives.features.encode`."""

    def __init__(
        self, source: PairSource, images: Encoder, texts: Encoder, folder: Path, dtype: str, processes: Processes
    ) -> None:
        self.images, self.texts, self.folder, self.processes = images, texts, folder, processes
        self.dtype = DTYPES[dtype]
        self.n_pairs, self.parts = source.n_pairs, source.parts()
        self.digests: list[str] = processes.divided(lambda part: part.digest(), self.parts)
        self.fingerprint = fingerprint_of(self.digests)
        self.plan = {
            "image": images.name,
            "text": texts.name,
            "chunk": CHUNK,
            "dtype": dtype,
            # What another version learns may differ; features of two versions in one file would not be comparable.
            "versions": [__version__, torch.__version__, version("scikit-learn")],
        }
        # What is learned from all texts is another thing for other data; what is not stays with its part.
        of = f"-{self.fingerprint[:16]}" if texts.learn is not None else ""
        self.image_store, self.text_store = Store(folder / "images"), Store(folder / f"texts{of}")
        self.whole, self.halt = folder / f"whole-{self.fingerprint[:16]}", folder / "halt"
        self.aside = folder / f"clustering-{self.fingerprint[:16]}"

    def run(self, progress: bool) -> Encoded:
        """Go through all steps."""
        self.processes.first(self._claim)
        console = Console(stderr=True)
        quiet = not (progress and console.is_terminal and self.processes.rank == 0)
        with Progress(console=console, disable=quiet, transient=True) as bar:
            self._encode_images(bar)
            counts = self._counts()
            self._encode_texts(bar, counts)
        self.processes.first(lambda: self._assemble(counts))
        return Encoded(self.whole, self.aside, self.fingerprint, sum(counts.values()), self.n_broken)

    def _claim(self) -> None:
        """Make the folder ready for parts of these data and encoders; others go."""
        file, plan = self.folder / "plan.json", json.dumps(self.plan)
        same = file.exists() and file.read_text() == plan
        stores = (self.image_store, self.text_store)
        keep = {file, self.whole, self.aside, *(store.folder for store in stores)} if same else set()
        with changing(self.folder):
            for item in list(self.folder.iterdir()) if self.folder.exists() else ():
                if item not in keep:
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
            for store in stores:
                store.tidy(set(self.digests))
        with replaced_file(file) as partial:
            partial.write_text(plan)

    def _encode_images(self, bar: Progress) -> None:
        todo = self._missing(self.image_store, dict(zip(self.digests, self.parts, strict=True)))
        alone = self.processes.world_size == 1 and len(todo) == len(self.parts)
        advance = self._watching(bar, "Encoding images", self.n_pairs if alone else None)

        def encode_mine() -> None:
            for digest in self.processes.mine(list(todo)):
                encode_images(todo[digest], digest, self.images, self.image_store, self.dtype, advance)

        self._guarded(encode_mine)

    def _encode_texts(self, bar: Progress, counts: dict[str, int]) -> None:
        todo = self._missing(self.text_store, dict.fromkeys(self.digests))
        advance = self._watching(bar, "Encoding texts", sum(counts[digest] for digest in self.processes.mine(list(todo))))
        if todo:
            self._learn(counts)

        def encode_mine() -> None:
            for digest in self.processes.mine(list(todo)):
                encode_texts(digest, self.texts, self.image_store, self.text_store, self.dtype, advance)

        self._guarded(encode_mine)

    def _missing(self, store: Store, parts: dict[str, T]) -> dict[str, T]:
        """Return the parts that are still to be done, the same on every process."""
        done = self.processes.divided(lambda digest: store.record(digest) is not None, list(parts))
        return {digest: part for (digest, part), there in zip(parts.items(), done, strict=True) if not there}

    def _counts(self) -> dict[str, int]:
        """Return the samples of each part, in order, once it is sure that there are some and no key is there twice."""
        records = self.processes.divided(self._count, self.digests)
        n, broken = sum(count for count, _, _ in records), sum(count for _, count, _ in records)

        def check() -> None:
            if n == 0:
                first = next((first for _, _, first in records if first), None)
                hint = f" ({broken} are broken, such as {first[0]}: {first[1]})" if first else ""
                raise DataError(f"Expected pairs of an image and a text, got none that can be read{hint}. Look at the data.")
            check_keys(self.image_store, self.digests, n)

        self.processes.first(check)
        self.n_broken = broken
        return {digest: count for digest, (count, _, _) in zip(self.digests, records, strict=True)}

    def _count(self, digest: str) -> tuple[int, int, list[str] | None]:
        """Return how many samples of a part are whole, how many broken, and one of those with the reason."""
        record = self.image_store.record(digest)
        if record is None:
            raise ArtifactError(f"Expected every part in {self.folder}, on a disk that all machines see, got one less.")
        return record["count"], len(record["broken"]), next(iter(record["broken"]), None)

    def _learn(self, counts: dict[str, int]) -> None:
        """Let the encoder of texts learn, the same on every process."""
        learn = self.texts.learn
        if learn is None:
            return
        chosen = list(evenly(counts, LEARNED_ON))
        shares = self.processes.divided(lambda some: list(texts_of(self.image_store, *some)), chosen)

        def learn_alone() -> None:
            # The last bits of sums depend on the number of threads, which torchrun changes.
            with threadpool_limits(1, "blas"):
                learn([text for share in shares for text in share])

        self._guarded(learn_alone)

    def _assemble(self, counts: dict[str, int]) -> None:
        store = Store(self.folder)
        if store.record(self.whole.name) is None:
            with store.adding(self.whole.name) as (partial, _):
                write_samples(self.image_store, self.digests, partial)
                images, texts = (self.images, self.image_store), (self.texts, self.text_store)
                write_features(images, texts, counts, self.dtype, partial)

    def _guarded(self, make: Callable[[], None]) -> None:
        """Do it on every process; an error on one soon stops the others, so that it is said at once."""

        def guarded() -> None:
            try:
                make()
            except Exception as error:
                if not isinstance(error, HaltedError) and self.processes.world_size > 1:
                    with suppress(OSError):  # what stopped this process is to be said, not that the others go on meanwhile
                        self.halt.touch()
                raise

        self.processes.together(guarded)

    def _watching(self, bar: Progress, what: str, total: int | None) -> Advance:
        """Return what is told of each chunk: it shows it, and stops where another process had to."""
        task = bar.add_task(what, total=total)

        def advance(count: int) -> None:
            bar.advance(task, count)
            if self.processes.world_size > 1 and self.halt.exists():
                raise HaltedError("Another process of the run stopped.")

        return advance
