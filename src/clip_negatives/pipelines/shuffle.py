"""The shuffle of `reshard`: old tars are read once, samples wait in buckets, and each new tar is written from one bucket."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import numpy as np

from clip_negatives.distributed.task import Task
from clip_negatives.pipelines.clustered_tars import ClusteredTars
from clip_negatives.pipelines.new_shards import NewShards, shard_name
from clip_negatives.pipelines.parts_by_task import share_until_done
from clip_negatives.pipelines.shard_plan import ShardPlan
from clip_negatives.progress import stage
from clip_negatives.storage.claims import Claims
from clip_negatives.storage.ownership import remove_inside, replaced_file
from clip_negatives.storage.paths import entries
from clip_negatives.storage.safe_reading import read_json
from clip_negatives.storage.sample_buckets import MAX_BUCKETS, Bucket, BucketWriter, WrittenPart
from clip_negatives.storage.task_folder import TaskFolder
from clip_negatives.training.same_data import map_files

END_OF_TAR = bytes(1024)
PART = "part-"  # beginning of the names of the folders with buckets; each task has its own


class Shuffle:
    """The copies of samples from old tars to new tars, which independent tasks share.

    Each task writes buckets of its own. New tars are written once the samples of all old tars are in buckets.
    """

    def __init__(self, plan: ShardPlan, tars: ClusteredTars, output: NewShards, folder: Path, task: Task) -> None:
        """Take the folder where tasks meet; it is inside the work folder of the output."""
        self._plan, self._tars, self._output, self._folder, self._task = plan, tars, output, folder, task
        self._claims = Claims(TaskFolder.at(folder, "buckets", "clip-negatives reshard"), str(task))
        self._n_buckets = min(MAX_BUCKETS, len(plan))
        self._bucket_of = np.arange(len(plan)) * self._n_buckets // len(plan)  # of each new tar

    def read_tars(self) -> None:
        """Copy the samples of the old tars to buckets. Tars that an earlier run read completely are not read again."""
        tars = {f"tar-{number:06d}": tar for number, tar in enumerate(self._plan.old_tars)}
        numbers = {tar: name for name, tar in tars.items()}

        def done() -> set[str]:
            return {numbers[tar] for part in self._written() for tar in part.tars} if self._folder.exists() else set(tars)

        if not set(tars) - done():
            return
        with (
            BucketWriter(self._folder / f"{PART}{secrets.token_hex(8)}", self._n_buckets) as writer,
            stage("Reading the tars", len(self._task.own(list(tars))), "tars") as running,
        ):

            def read(name: str) -> None:
                start, stop = self._plan.old_tars[tars[name]]
                buckets = self._bucket_of[self._plan.new_tar_of[start:stop]].tolist()
                keys = self._plan.keys_of(tars[name])
                self._tars.read(tars[name], keys, lambda row, sample: writer.add(buckets[row - start], row, sample))
                writer.complete(tars[name])
                running.advance()

            share_until_done(list(tars), self._task, self._claims, done=done, work=read)

    def write_shards(self) -> None:
        """Write the new tars that are missing or of another size."""
        shards_of = {f"bucket-{bucket:03d}": np.flatnonzero(self._bucket_of == bucket) for bucket in range(self._n_buckets)}
        self._forget_changed(list(shards_of))
        parts = self._written()
        mine = sum(len(shards_of[name]) for name in self._task.own(list(shards_of)))
        with stage("Writing shards", mine, "shards") as running:

            def done() -> set[str]:
                is_over = not self._folder.exists()  # another task has finished the output
                return {name for name in shards_of if is_over or self._sizes_file(name).exists()}

            def write(name: str) -> None:
                bucket = Bucket(int(name.rpartition("-")[2]), parts)
                sizes: dict[str, int] = {}
                for number in shards_of[name].tolist():
                    sizes[shard_name(number)] = self._write_shard(number, bucket)
                    running.advance()
                with replaced_file(self._sizes_file(name)) as partial:
                    partial.write_text(json.dumps(sizes))

            share_until_done(list(shards_of), self._task, self._claims, done=done, work=write)

    def _write_shard(self, number: int, bucket: Bucket) -> int:
        """Write a new tar unless it is there, and return its size."""
        rows, name = self._plan.rows_of(number), shard_name(number)
        size = bucket.n_bytes(rows) + len(END_OF_TAR)
        if self._output.size(name) != size:
            with self._output.writing(name) as partial, partial.open("wb") as stream:
                stream.writelines(bucket.read(rows))
                stream.write(END_OF_TAR)
        return size

    def _forget_changed(self, buckets: list[str]) -> None:
        """Remove the sizes of complete buckets of which a new tar is missing or has another size."""
        for file in filter(Path.exists, map(self._sizes_file, buckets)):
            sizes = read_json(file)
            if map_files(self._output.size, sizes, chunk=1) != list(sizes.values()):
                remove_inside(self._output.work, [file])

    def _sizes_file(self, bucket: str) -> Path:
        """Return the file with the sizes of the new tars of a bucket, which is written when all of them are complete."""
        return self._folder / f"{bucket}.json"

    def _written(self) -> list[WrittenPart]:
        folders = sorted(folder for folder in entries(self._folder) if folder.name.startswith(PART))
        return [WrittenPart.of(folder, self._n_buckets) for folder in folders]
