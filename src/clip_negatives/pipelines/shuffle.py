"""The shuffle of `reshard`: old tars are read once, samples wait in buckets, and each new tar is written from one bucket."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from clip_negatives.distributed.processes import Processes
from clip_negatives.features.shared_work import SharedWork
from clip_negatives.pipelines.clustered_tars import ClusteredTars
from clip_negatives.pipelines.new_shards import NewShards, shard_name
from clip_negatives.progress import stage
from clip_negatives.storage.ownership import clear_work
from clip_negatives.storage.paths import entries
from clip_negatives.storage.sample_buckets import MAX_BUCKETS, Bucket, BucketWriter, WrittenPart, check_all_read

END_OF_TAR = bytes(1024)


class Shuffle(SharedWork):
    """The copies of samples from old tars to new tars, which the processes share."""

    def __init__(self, plan: list[Tensor], tars: ClusteredTars, output: NewShards, origin: str, processes: Processes) -> None:
        """Take the samples of each new tar, and a digest of everything that determines the new tars."""
        self._plan, self._tars, self._output, self.processes = plan, tars, output, processes
        self._n_buckets = min(MAX_BUCKETS, len(plan))
        self._stamp = f"{origin[:16]}-{self._n_buckets}-"  # beginning of the names of the parts
        self.halt = output.work / "halt"

    def clear(self) -> None:
        """Remove what other shuffles left in the work folder."""
        clear_work(self._output.work, self._parts())

    def read_tars(self) -> None:
        """Copy the samples of the old tars to buckets. Tars that an earlier run read completely are not read again."""
        done = {tar for part in self.processes.first(self._written) for tar in part.tars}
        left = [tar for tar in self._tars.addresses if tar not in done]
        if not left:
            return
        mine, buckets = set(self.processes.mine(left)), self._buckets_of_samples()
        folder = self._output.work / f"{self._stamp}{secrets.token_hex(4)}"
        with ExitStack() as stack, stage(self._title("Reading the tars"), len(mine), "tars") as running:
            writer = self.processes.together(lambda: stack.enter_context(BucketWriter(folder, self._n_buckets)))
            advance = self._advance(running)

            def read(tar: tuple[str, pa.Array, slice]) -> None:
                self._tars.read(*tar, lambda row, sample: writer.add(buckets[row], row, sample))
                writer.complete(tar[0])
                advance(1)

            self._for_each(read, self._tars.samples(mine))

    def write_shards(self) -> None:
        """Write the new tars that are missing or of another size."""
        parts = self.processes.first(self._written)
        self.processes.together(lambda: check_all_read(parts, self._tars.addresses, self._output.work))
        mine = self.processes.share(len(self._plan))
        with stage(self._title("Writing shards"), len(mine), "shards") as running:
            advance = self._advance(running)

            def write(shard: tuple[int, Bucket]) -> None:
                number, bucket = shard
                rows, name = self._plan[number].numpy(), shard_name(number)
                if self._output.size(name) != bucket.n_bytes(rows) + len(END_OF_TAR):
                    with self._output.writing(name) as partial, partial.open("wb") as stream:
                        stream.writelines(bucket.read(rows))
                        stream.write(END_OF_TAR)
                advance(1)

            grouped = groupby(mine, key=self._bucket)
            self._for_each(
                write,
                ((number, bucket) for place, numbers in grouped for bucket in [Bucket(place, parts)] for number in numbers),
            )

    def _bucket(self, number: int) -> int:
        """Return the bucket of a new tar."""
        return number * self._n_buckets // len(self._plan)

    def _buckets_of_samples(self) -> NDArray[np.uint8]:
        buckets = np.empty(sum(map(len, self._plan)), np.uint8)
        for number, rows in enumerate(self._plan):
            buckets[rows.numpy()] = self._bucket(number)
        return buckets

    def _parts(self) -> list[Path]:
        return sorted(folder for folder in entries(self._output.work) if folder.name.startswith(self._stamp))

    def _written(self) -> list[WrittenPart]:
        return [WrittenPart.of(folder, self._n_buckets) for folder in self._parts()]
