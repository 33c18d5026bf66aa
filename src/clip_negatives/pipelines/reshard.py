"""Copy the samples of webdataset shards to new shards; each new shard is one batch of a negative sampler.

This is a shuffle on disk: each old tar is read once, its samples go to buckets, and each new tar is written from one bucket.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.batches.checked import checked_batches
from clip_negatives.dataset.urls import expand_urls, shard_source
from clip_negatives.distributed.processes import ALONE, Processes
from clip_negatives.errors import ArtifactError, DataError, InputError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.host.method import Method
from clip_negatives.interfaces import SamplingContext
from clip_negatives.pipelines.clustered_tars import ClusteredTars
from clip_negatives.pipelines.new_shards import SIZES, NewShards, open_output, shard_name
from clip_negatives.pipelines.shuffle import Shuffle
from clip_negatives.progress import stage
from clip_negatives.storage.arrow_table import map_table, take, write_mapped
from clip_negatives.storage.digests import digest_of
from clip_negatives.storage.labels_folder import write_shard_labels
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.manifest import PLAN, SAMPLES
from clip_negatives.storage.ownership import claim_work, remove_work
from clip_negatives.storage.provenance import clusters_section, differences, in_words, plugins_section, resolved
from clip_negatives.storage.sharded_samples import ShardedSamples
from clip_negatives.training.same_data import map_files

SAMPLE_TABLE = "samples.arrow"  # memory-mapped keys and texts of all samples, in the work folder


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
    processes: Processes = ALONE,
) -> Resharded:
    """Copy the samples of tars to new tars; each new tar is one batch of `sampler`, with `samples_per_shard` samples.

    A stream draws its batches from a few shards. The default sampler spreads clusters evenly over the shards, so a batch has
    few near-duplicates. Each clustered sample is copied once, byte for byte.

    Each old tar is read once, from its first byte to its last. Its samples wait in a folder beside the output. The folder takes
    as much disk space as the data, and is removed at the end.

    After an interruption, the same call continues, on any number of processes: old tars that were read completely are not read
    again, and complete shards are kept. Memory holds the plan of the sampler and one shard per process.

    Args:
        data: the clustered tars, or copies at other addresses.
        clusters_folder: clusters folder of these tars.
        output: folder of the new tars, of ``sizes.json`` for open_clip and of a labels folder: a path, or a URL of an object
            store such as ``s3://``.
        sampler: ``name`` or ``name:key=value,...``.
        samples_per_shard: samples per new shard; the remainder is spread over all shards.
        seed: seed of the sampler.
        work_folder: local folder for the waiting samples, which all processes see. By default the parent folder of `output`;
            a URL has no default.
        processes: the processes that share the work.

    Raises:
        PluginError: the sampler or an option is unknown.
        InputError: a value is out of its range, or the sampler cannot use the clusters.
        UnsupportedError: the sampler does not compose batches.
        DataError: a tar cannot be read, or lacks a clustered sample.
        ArtifactError: the clusters folder is damaged or of other tars, or `output` cannot be written.
    """
    new_shards = processes.together(lambda: open_output(output, work_folder))
    job = processes.together(lambda: _Job(data, Path(clusters_folder), new_shards, sampler, samples_per_shard, seed))
    with ExitStack() as stack:
        with stage("Planning the shards"):
            plan = processes.together(job.plan)  # before anything is written: the sampler may raise
        origin = processes.first(job.origin)
        with stage("Checking the keys"):
            processes.first(lambda: job.check_keys(plan))
        processes.first(lambda: stack.enter_context(sole_user(job.output.locked)))
        processes.first(lambda: job.claim(origin))
        if processes.first(job.is_done):
            return Resharded(len(job.output.read_json(SIZES)), job.n_samples)
        shuffle = Shuffle(plan, job.tars, job.output, digest_of({"origin": json.dumps(origin)}), processes)
        processes.first(shuffle.clear)
        shuffle.read_tars()
        shuffle.write_shards()
        processes.first(lambda: job.finish(plan))
    return Resharded(len(plan), job.n_samples)


class _Job:
    """The steps of resharding; each step skips what an earlier run completed."""

    def __init__(self, data: str, clusters: Path, output: NewShards, sampler: str, samples_per_shard: int, seed: int) -> None:
        if samples_per_shard < 1:
            raise InputError(f"{argument('samples_per_shard')} must be at least 1, got {samples_per_shard}.")
        plugin, _ = registry.default_registry().resolve("negative_sampler", sampler)
        if plugin.keeps_native_order:
            raise UnsupportedError(f"The sampler {plugin.name} does not compose batches. Use another sampler.")
        self.method = Method(sampler)
        self.source = ShardedSamples(clusters)
        self.n_samples = self.source.image.n_samples
        self.tars = ClusteredTars(self.source, expand_urls(data))
        self.output, self.size, self.seed = output, min(samples_per_shard, self.n_samples), seed

    def plan(self) -> list[Tensor]:
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

    def origin(self) -> dict[str, Any]:
        """Return what determines the new shards, after comparing the tars with the clustered ones."""
        manifest, tars = self.source.manifest, self.tars.compared()
        return {
            "clusters": {**clusters_section(manifest), **{name: manifest.get(name) for name in ("data", "created")}},
            "sampler": resolved("negative_sampler", self.method.sampler),
            "plugins": plugins_section([("negative_sampler", self.method.sampler)]),
            "tars": {file: digest_of({"bytes": str(tar.size), "sha256": tar.sha256}) for file, tar in tars.items()},
            "samples_per_shard": self.size,
            "seed": self.seed,
        }

    def check_keys(self, plan: list[Tensor]) -> None:
        """Raise DataError if two samples of a new shard have the same key: labels could not tell them apart."""
        keys_of = (keys.to_numpy(zero_copy_only=False) for _, keys, *_ in self.source.shards())
        hashes = np.concatenate([pd.util.hash_array(keys) for keys in keys_of])
        for rows in plan:
            if len(np.unique(hashes[rows.numpy()])) < len(rows):
                raise DataError(
                    "Samples of different tars have the same key, and a new shard would hold two of them. Rename the samples: "
                    "reshard copies them as they are."
                )

    def claim(self, origin: dict[str, Any]) -> None:
        """Write the settings to the output, or check that an earlier run had the same settings."""
        is_new = self.output.size(PLAN) is None
        if not is_new and (listed := differences(self.output.read_json(PLAN), origin)):
            fault = (
                f"{self.output.address('').rstrip('/')} was written with other tars, clusters or settings: {in_words(listed)}"
            )
            raise InputError(f"{fault}. Use those of the earlier command, or choose another output folder.")
        claim_work(self.output.work)
        if is_new:
            self.output.write_json(PLAN, origin)

    def is_done(self) -> bool:
        """Return whether an earlier run is complete, with every shard at its size; if so, remove its work folder."""
        if self.output.size(SIZES) is None:
            return False
        try:
            tars = list(self.output.read_labels().shards.sources.values())
        except ArtifactError:  # missing or damaged
            return False
        sizes = map_files(lambda tar: self.output.size(tar.file), tars, chunk=1)
        if done := sizes == [tar.size for tar in tars]:
            remove_work(self.output.work)
        return done

    def finish(self, plan: list[Tensor]) -> None:
        """Write the labels and then the sizes of the new shards; the file of sizes marks the output as complete."""
        source, table = self.source, self.output.work / SAMPLE_TABLE
        write_mapped(source.path / SAMPLES, ("key", "text"), table)
        samples = map_table(table)

        def labels(rows: Tensor) -> pa.Table:
            keys, texts = (take(samples[name], rows.numpy()) for name in ("key", "text"))
            return source.table(keys, rows, texts)

        names = [shard_name(number) for number in range(len(plan))]
        shards = ((name, labels(rows)) for name, rows in zip(names, plan, strict=True))
        tars = dict(zip(names, map_files(shard_source, map(self.output.address, names)), strict=True))
        write_shard_labels((source.image, source.text), shards, self.output.labels, tars, source.manifest)
        self.output.publish_labels()
        self.output.write_json(SIZES, {name: len(rows) for name, rows in zip(names, plan, strict=True)})
        remove_work(self.output.work)
