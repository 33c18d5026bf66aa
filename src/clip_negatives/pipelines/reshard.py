"""Copy the samples of webdataset shards to new shards; each new shard is one batch of a negative sampler.

This is a shuffle on disk: each old tar is read once, its samples go to buckets, and each new tar is written from one bucket.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.batches.checked import checked_batches
from clip_negatives.dataset.urls import shard_source
from clip_negatives.distributed.task import Task
from clip_negatives.errors import ArtifactError, InputError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.host.method import Method
from clip_negatives.interfaces import SamplingContext
from clip_negatives.pipelines.clustered_tars import ClusteredTars
from clip_negatives.pipelines.new_shards import SIZES, NewShards, open_output, shard_name
from clip_negatives.pipelines.shard_plan import ShardPlan
from clip_negatives.pipelines.shuffle import Shuffle
from clip_negatives.progress import stage
from clip_negatives.storage.digests import digest_of
from clip_negatives.storage.labels_folder import write_shard_labels
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.manifest import PLAN, SHARDS
from clip_negatives.storage.ownership import claim_work, clear_work, remove_work
from clip_negatives.storage.provenance import clusters_section, differences, in_words, plugins_section, resolved
from clip_negatives.storage.sample_buckets import MAX_BUCKETS
from clip_negatives.storage.sharded_labels import labelled_tars
from clip_negatives.training.same_data import map_files

PLAN_FOLDER = "plan"  # in the folder where tasks meet


@dataclass(frozen=True, slots=True)
class Resharded:
    """Number of new shards, and total number of samples."""

    shards: int
    samples: int


def reshard(
    data: str,
    clusters_folder: str | Path,
    output: str | Path,
    *,
    sampler: str = Method.sampler,
    samples_per_shard: int = 10_000,
    seed: int = 0,
    work_folder: str | Path | None = None,
    task: Task = Task(),  # noqa: B008  (immutable)
) -> Resharded:
    """Copy the samples of tars to new tars; each new tar is one batch of `sampler`, with `samples_per_shard` samples.

    A stream draws its batches from a few shards. The default sampler spreads clusters evenly over the shards, so a batch has
    few near-duplicates. Each clustered sample is copied once, byte for byte.

    Each old tar is read once, from its first byte to its last. Its samples wait in a folder beside the output. The folder takes
    as much disk space as the data, and is removed at the end.

    Independent tasks may share the work: the same call with other values of `task`, at any time, on machines that see
    `work_folder`. The call returns when the output is complete. After an interruption, the same call continues, with any
    number of tasks: old tars that were read completely are not read again, and complete shards are kept. The first task makes
    the plan, which takes about 120 bytes of memory for each sample. The others map it from the disk.

    Args:
        data: the clustered tars, or copies at other addresses.
        clusters_folder: clusters folder or labels folder of these tars.
        output: folder of the new tars, of ``sizes.json`` for open_clip and of a labels folder: a path, or a URL of an object
            store such as ``s3://``.
        sampler: ``name`` or ``name:key=value,...``.
        samples_per_shard: samples per new shard; the remainder is spread over all shards.
        seed: seed of the sampler.
        work_folder: local folder for the waiting samples, which all tasks see. By default the parent folder of `output`; a URL
            has no default.
        task: this task.

    Raises:
        PluginError: the sampler or an option is unknown.
        InputError: a value is out of its range, or the sampler cannot use the clusters.
        UnsupportedError: the sampler does not compose batches.
        DataError: a tar cannot be read, or lacks a clustered sample.
        ArtifactError: the clusters are damaged or of other tars, or `output` cannot be written.
    """
    job = _Job(data, Path(clusters_folder), open_output(output, work_folder), sampler, samples_per_shard, seed)
    with sole_user(job.output.locked):
        job.check_settings()
        if job.is_done():
            return Resharded(len(job.output.read_json(SIZES)), job.n_samples)
        folder = job.prepared()
    plan = ShardPlan.open(folder / PLAN_FOLDER)
    job.tars.locate(plan.old_tars)
    shuffle = Shuffle(plan, job.tars, job.output, folder, task)
    shuffle.read_tars()
    shuffle.write_shards()
    with sole_user(job.output.locked):
        if not job.is_done():  # unless another task was faster
            job.finish(plan)
    return Resharded(len(plan), job.n_samples)


class _Job:
    """The steps of resharding that one task does for all."""

    def __init__(self, data: str, clusters: Path, output: NewShards, sampler: str, samples_per_shard: int, seed: int) -> None:
        if samples_per_shard < 1:
            raise InputError(f"{argument('samples_per_shard')} must be at least 1, got {samples_per_shard}.")
        plugin, _ = registry.default_registry().resolve("negative_sampler", sampler)
        if plugin.keeps_native_order:
            raise UnsupportedError(f"The sampler {plugin.name} does not compose batches. Use another sampler.")
        self.method = Method(sampler)
        self.source = labelled_tars(clusters)
        self.n_samples = self.source.image.n_samples
        self.tars = ClusteredTars(self.source, data)
        self.output, self.size, self.seed = output, min(samples_per_shard, self.n_samples), seed

    def check_settings(self) -> None:
        """Raise InputError if the output was begun with other settings."""
        if self.output.size(PLAN) is not None and (listed := differences(self.output.read_json(PLAN), self.origin)):
            written = f"{self.output.address('').rstrip('/')} was written with other tars, clusters or settings"
            raise InputError(
                f"{written}: {in_words(listed)}. Use those of the earlier command, or choose another output folder."
            )

    def is_done(self) -> bool:
        """Return whether the output is complete, with every shard at its size; if so, remove its work folder."""
        if self.output.size(SIZES) is None:
            return False
        try:
            tars = self.output.labelled()
        except ArtifactError:  # missing or damaged
            return False
        sizes = map_files(lambda tar: self.output.size(tar.file), tars, chunk=1)
        if done := sizes == [tar.size for tar in tars]:
            remove_work(self.output.work)
        return done

    def prepared(self) -> Path:
        """Return the folder where tasks meet, with the plan in it; the first task makes both."""
        stamp = digest_of({"origin": json.dumps(self.origin), "buckets": str(MAX_BUCKETS)})
        folder = self.output.work / stamp[:16]
        if not (folder / PLAN_FOLDER).exists():
            self.tars.check()
            with stage("Planning the shards"):
                shards = self._shards()  # before anything is written: the sampler may raise an error
                claim_work(self.output.work)
                clear_work(self.output.work, [folder])
                folder.mkdir(exist_ok=True)
                ShardPlan.write(folder / PLAN_FOLDER, self.source, shards)
        if self.output.size(PLAN) is None:
            self.output.write_json(PLAN, self.origin)
        return folder

    def finish(self, plan: ShardPlan) -> None:
        """Write labels and sizes of the new shards, and remove the work folder."""
        names = [shard_name(number) for number in range(len(plan))]
        shards = ((name, plan.labels_of(number)) for number, name in enumerate(names))
        tars = dict(zip(names, map_files(shard_source, map(self.output.address, names)), strict=True))
        write_shard_labels((self.source.image, self.source.text), shards, self.output.labels, tars, self.source.manifest)
        self.output.publish_labels()
        self.output.write_json(SIZES, {name: len(plan.rows_of(number)) for number, name in enumerate(names)})
        remove_work(self.output.work)

    def _shards(self) -> Sequence[Tensor]:
        """Return the samples of each new shard."""
        context = SamplingContext.of(self.source.clusters, self.size, n_samples=self.n_samples, seed=self.seed)
        sampler = self.method.create_sampler(context)
        sampler.set_epoch(0)
        shards = [torch.tensor(batch) for batch in checked_batches(sampler, self.n_samples)]
        unused = torch.ones(self.n_samples, dtype=torch.bool)
        for shard in shards:
            unused[shard] = False
        remainder = unused.nonzero().flatten()
        return [torch.cat([shard, remainder[number :: len(shards)]]) for number, shard in enumerate(shards)]

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Return what determines the new shards."""
        manifest = self.source.manifest
        labels = {"labels": manifest["files"][SHARDS]["sha256"]} if SHARDS in manifest["files"] else {}
        created = {name: manifest.get(name) for name in ("data", "created")}
        sources = self.source.sources().items()
        return {
            "clusters": {**clusters_section(manifest), **created, **labels},
            "sampler": resolved("negative_sampler", self.method.sampler),
            "plugins": plugins_section([("negative_sampler", self.method.sampler)]),
            "tars": {tar: digest_of({"bytes": str(source.size), "sha256": source.sha256}) for tar, source in sources},
            "samples_per_shard": self.size,
            "seed": self.seed,
        }
