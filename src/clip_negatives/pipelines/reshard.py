"""Copy the samples of webdataset shards to new shards; each new shard is one batch of a negative sampler."""

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
from clip_negatives.dataset.images import file_size
from clip_negatives.dataset.urls import expand_urls, shard_source
from clip_negatives.distributed.processes import ALONE, Processes
from clip_negatives.errors import ArtifactError, DataError, InputError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.host.method import Method
from clip_negatives.interfaces import SamplingContext
from clip_negatives.pipelines.clustered_tars import ClusteredTars
from clip_negatives.progress import stage
from clip_negatives.storage.arrow_table import map_table, take, write_mapped
from clip_negatives.storage.digests import digest_of
from clip_negatives.storage.labels_folder import read_labels, write_shard_labels
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.manifest import PLAN, SAMPLES
from clip_negatives.storage.ownership import claim_work, remove_work, replaced_file
from clip_negatives.storage.paths import check_resumable
from clip_negatives.storage.provenance import clusters_section, differences, in_words, plugins_section, resolved
from clip_negatives.storage.safe_reading import one_line, read_json
from clip_negatives.storage.sharded_samples import ShardedSamples
from clip_negatives.training.same_data import map_files
from clip_negatives.training.same_files import check_contents

# Files of the output, besides its settings: number of samples of each shard (for open_clip), and labels folder.
SIZES, LABELS = "sizes.json", "labels"
SAMPLE_TABLE = "samples.arrow"  # memory-mapped keys and texts of all samples, in the work folder
END_OF_TAR = bytes(1024)


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
    processes: Processes = ALONE,
) -> Resharded:
    """Copy the samples of tars to new tars; each new tar is one batch of `sampler`, with `samples_per_shard` samples.

    A stream draws its batches from a few shards. The default sampler spreads clusters evenly over the shards, so a batch has
    few near-duplicates. Each clustered sample is copied once, byte for byte.

    After an interruption, the same call continues, on any number of processes: complete shards are kept, and missing ones are
    written again. Memory holds the
    plan of the sampler and one shard per process. Each of the N samples is a random read in an old tar.

    Args:
        data: the clustered tars, or copies at other addresses; not ``pipe:``.
        clusters_folder: clusters folder of these tars.
        output: folder of the new tars, of ``sizes.json`` for open_clip and of a labels folder.
        sampler: ``name`` or ``name:key=value,...``.
        samples_per_shard: samples per new shard; the remainder is spread over all shards.
        seed: seed of the sampler.
        processes: the processes that share the work.

    Raises:
        PluginError: the sampler or an option is unknown.
        InputError: a value is out of its range, or the sampler cannot use the clusters.
        UnsupportedError: the sampler does not compose batches.
        DataError: a tar cannot be read, or lacks a clustered sample.
        ArtifactError: the clusters folder is damaged or of other tars, or `output` cannot be written.
    """
    output = processes.together(lambda: check_resumable(output, PLAN))
    job = processes.together(lambda: _Job(data, Path(clusters_folder), output, sampler, samples_per_shard, seed))
    with ExitStack() as stack:
        with stage("Planning the shards"):
            plan = processes.together(job.plan)  # before anything is written: the sampler may raise
        origin = processes.first(job.origin)
        with stage("Checking the keys"):
            processes.first(lambda: job.check_keys(plan))
        processes.first(lambda: stack.enter_context(sole_user(output)))
        processes.first(lambda: job.claim(origin))
        if processes.first(job.is_done):
            return Resharded(len(_read_json(output / SIZES)), job.n_samples)
        processes.together(lambda: job.tars.find_samples(processes))
        processes.together(lambda: job.write_shards(plan, processes))
        processes.first(lambda: job.finish(plan))
    return Resharded(len(plan), job.n_samples)


class _Job:
    """The steps of resharding; each step skips what an earlier run completed."""

    def __init__(self, data: str, clusters: Path, output: Path, sampler: str, samples_per_shard: int, seed: int) -> None:
        if samples_per_shard < 1:
            raise InputError(f"{argument('samples_per_shard')} must be at least 1, got {samples_per_shard}.")
        plugin, _ = registry.default_registry().resolve("negative_sampler", sampler)
        if plugin.keeps_native_order:
            raise UnsupportedError(f"The sampler {plugin.name} does not compose batches. Use another sampler.")
        self.method = Method(sampler)
        self.source = ShardedSamples(clusters)
        self.n_samples = self.source.image.n_samples
        work = output.with_name(f".{output.name}.places")
        self.tars = ClusteredTars(self.source, expand_urls(data), work)  # before a folder is made
        self.output, self.size, self.seed = output, min(samples_per_shard, self.n_samples), seed
        self.work = work

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
        addresses = {shard: self.tars.address(shard) for shard, *_ in self.source.shards()}
        known = self.source.sources()
        with stage("Comparing the tars with the clusters"):
            tars = [(address, known[shard]) for shard, address in addresses.items() if shard in known]
            check_contents(tars, self.source.path)
        contents = []
        with stage("Reading the tars", len(addresses), "tars") as running:
            for tar in map_files(shard_source, addresses.values(), chunk=1):
                contents.append(digest_of({"bytes": str(tar.size), "sha256": tar.sha256}))
                running.advance()
        manifest = self.source.manifest
        return {
            "clusters": {**clusters_section(manifest), **{name: manifest.get(name) for name in ("data", "created")}},
            "sampler": resolved("negative_sampler", self.method.sampler),
            "plugins": plugins_section([("negative_sampler", self.method.sampler)]),
            "tars": dict(zip(addresses, contents, strict=True)),
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
        """Write the settings to the output folder, or check that an earlier run had the same settings."""
        file = self.output / PLAN
        if file.exists() and (listed := differences(_read_json(file), origin)):
            fault = f"{self.output} was written with other tars, clusters or settings: {in_words(listed)}"
            raise InputError(f"{fault}. Use those of the earlier command, or choose another output folder.")
        claim_work(self.work)
        if not file.exists():
            with replaced_file(file) as partial:
                partial.write_text(json.dumps(origin) + "\n")

    def is_done(self) -> bool:
        """Return whether an earlier run is complete, with every shard at its size; if so, remove its work folder."""
        if not (self.output / SIZES).exists():
            return False
        try:
            tars = read_labels(self.output / LABELS).shards.sources.values()
        except ArtifactError:  # missing or damaged
            return False
        if done := all(file_size(str(self.output / tar.file)) == tar.size for tar in tars):
            remove_work(self.work)
        return done

    def write_shards(self, plan: list[Tensor], processes: Processes) -> None:
        sizes, files = self.tars.sizes(), [self.output / _name(number) for number in range(len(plan))]
        missing = [
            number
            for number in processes.mine(range(len(plan)))
            if file_size(str(files[number])) != sizes[plan[number].numpy()].sum() + len(END_OF_TAR)
        ]
        with stage("Writing shards", len(missing), "shards") as running:
            for number in missing:
                with replaced_file(files[number]) as partial, partial.open("wb") as stream:
                    stream.writelines(self.tars.read(plan[number].numpy()))
                    stream.write(END_OF_TAR)
                running.advance()

    def finish(self, plan: list[Tensor]) -> None:
        """Write the labels and then the sizes of the new shards; the file of sizes marks the output as complete."""
        write_mapped(self.source.path / SAMPLES, ("key", "text"), self.work / SAMPLE_TABLE)
        samples = map_table(self.work / SAMPLE_TABLE)

        def labels(rows: Tensor) -> pa.Table:
            keys, texts = (take(samples[name], rows.numpy()) for name in ("key", "text"))
            return self.source.table(keys, rows, texts)

        shards = ((_name(number), labels(rows)) for number, rows in enumerate(plan))
        tars = {_name(number): shard_source(str(self.output / _name(number))) for number in range(len(plan))}
        source = self.source
        write_shard_labels((source.image, source.text), shards, self.output / LABELS, tars, source.manifest)
        with replaced_file(self.output / SIZES) as partial:
            partial.write_text(json.dumps({_name(number): len(rows) for number, rows in enumerate(plan)}) + "\n")
        remove_work(self.work)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, "json_bytes")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{file} is damaged: {one_line(error)}. Delete its folder or choose another output folder."
        ) from error


def _name(number: int) -> str:
    return f"{number:06d}.tar"
