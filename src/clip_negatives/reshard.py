"""Write webdataset shards anew, each with the samples that a negative sampler puts together."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_negatives import registry
from clip_negatives.artifacts import SAMPLES
from clip_negatives.atomic import refuse_foreign, replaced_file, sole_user
from clip_negatives.dataset.places import places_of, read_part
from clip_negatives.dataset.urls import expand_urls, open_url, stamp_of
from clip_negatives.errors import ArtifactError, DataError, InputError, UnsupportedError
from clip_negatives.interfaces import SamplingContext
from clip_negatives.labelled_samples import LabelledSamples
from clip_negatives.labels import last_parts, write_shard_labels
from clip_negatives.mapped import map_table, take, write_mapped
from clip_negatives.processes import ALONE, Processes
from clip_negatives.reading import one_line, read_json

PLAN, SIZES, LABELS = "plan.json", "sizes.json", "labels"
"""What it is made from, the samples of each shard as open_clip reads them, and the labels folder of the new shards."""

KEYS = "keys.arrow"
"""The keys of all samples while they are looked up."""

END_OF_TAR = bytes(1024)
"""The blocks of zeros at the end of a tar."""


@dataclass(frozen=True, slots=True)
class Resharded:
    """Say what was written.

    Attributes:
        shards: how many.
        samples: in all of them.
    """

    shards: int
    samples: int


def reshard(
    data: str,
    clusters_folder: str | Path,
    output: str | Path,
    *,
    sampler: str = "cluster_similarity",
    samples_per_shard: int = 10_000,
    seed: int = 0,
    processes: Processes = ALONE,
) -> Resharded:
    """Write the samples of tars into new tars, composed as `sampler` composes batches of the size of a shard.

    A stream has the batches that its shards have in them: with the default sampler each shard holds its share of every cluster,
    so that a batch, drawn from a few shards, meets few near-duplicates. Each clustered sample is written once, byte for byte.

    A run that was interrupted goes on, on any number of processes: a shard that is there is whole. Beside the plan of the
    sampler, memory holds one shard a process. A sample is read by itself from where it lies: N reads at random places.

    Args:
        data: the tars that were clustered, or copies of them under other addresses; not ``pipe:``.
        clusters_folder: what was prepared from them.
        output: folder of the new tars, with ``sizes.json`` for open_clip and a labels folder of them.
        sampler: ``name`` or ``name:key=value,...``.
        samples_per_shard: of a new shard; what fills none is dealt out to the others.
        seed: of the sampler.
        processes: those that share the work.

    Raises:
        PluginError: no such sampler, or option.
        InputError: a value is out of its range, or the sampler refuses.
        UnsupportedError: the sampler takes batches as they come.
        DataError: a tar cannot be read, or lacks a sample that was clustered.
        ArtifactError: the clusters folder is damaged, or `output` cannot be written.
    """
    output = Path(output).absolute()
    job = processes.together(lambda: _Job(data, Path(clusters_folder), output, sampler, samples_per_shard, seed))
    with ExitStack() as stack:
        plan = processes.together(job.plan)  # what the sampler refuses leaves nothing behind
        processes.first(lambda: stack.enter_context(sole_user(job.work)))
        processes.first(job.claim)
        if processes.first(job.is_done):
            return Resharded(len(_read(output / SIZES)), job.n_samples)
        processes.together(lambda: job.find_samples(processes))
        processes.together(lambda: job.write_shards(plan, processes))
        processes.first(lambda: job.finish(plan))
    return Resharded(len(plan), job.n_samples)


class _Job:
    """Do the steps, each of which finds what an earlier run has done."""

    def __init__(self, data: str, clusters: Path, output: Path, sampler: str, samples_per_shard: int, seed: int) -> None:
        if samples_per_shard < 1:
            raise InputError(f"Expected at least 1 sample for a shard, got {samples_per_shard}.")
        item, _ = registry.default_registry().resolve("negative_sampler", sampler)
        if item.keeps_native_order:
            raise UnsupportedError(f"Expected a sampler that composes batches, got {item.name}, which takes them as they come.")
        self.source = LabelledSamples(clusters)
        self.n_samples = self.source.image.n_samples
        self.addresses = _addresses(expand_urls(data))
        self.output, self.sampler, self.size, self.seed = output, sampler, min(samples_per_shard, self.n_samples), seed
        self.work = output.with_name(f".{output.name}.places")
        self._stamps: dict[int, str] = {}
        refuse_foreign(output, known_by=PLAN)

    def claim(self) -> None:
        """Begin a folder for this very plan, or go on with it."""
        made_from = {
            name: self.source.manifest.get(name) for name in ("data", "clusterer", "text_clusterer", "seed", "created")
        }
        plan = {"clusters": made_from, "sampler": self.sampler, "samples_per_shard": self.size, "seed": self.seed}
        file = self.output / PLAN
        if file.exists() and _read(file) != plan:
            raise InputError(
                f"Expected {self.output} to hold shards of the same clusters, sampler, size and seed, got others. Name another."
            )
        with replaced_file(file) as partial:
            partial.write_text(json.dumps(plan) + "\n")

    def is_done(self) -> bool:
        """Return whether an earlier run came to its end; what it left to work in goes."""
        done = (self.output / SIZES).exists()
        if done:
            self._clean()
        return done

    def find_samples(self, processes: Processes) -> None:
        """Write where each sample lies in its tar: first byte and size, int64."""
        for number, (shard, keys, _) in enumerate(self.source.shards()):
            if number % processes.world_size != processes.rank or self._places(number, shard).exists():
                continue
            places = places_of(self._address(shard))
            lacking = next((key for key in keys.to_pylist() if key not in places), None)
            if lacking is not None:
                where = self._address(shard)
                raise DataError(f"Expected the sample {lacking} in {where}, as it was clustered, got none. Prepare again.")
            with replaced_file(self._places(number, shard)) as partial, partial.open("wb") as stream:
                np.save(stream, np.array([places[key] for key in keys.to_pylist()], dtype=np.int64))

    def plan(self) -> list[Tensor]:
        """Return the samples of each new shard."""
        context = SamplingContext(self.n_samples, self.size, seed=self.seed, clusters=self.source.clusters)
        sampler = registry.create("negative_sampler", self.sampler, context)
        sampler.set_epoch(0)
        shards = [torch.tensor(batch) for batch in sampler]
        spare = torch.ones(self.n_samples, dtype=torch.bool)
        for shard in shards:
            spare[shard] = False
        left = spare.nonzero().flatten()
        return [torch.cat([shard, left[number :: len(shards)]]) for number, shard in enumerate(shards)]

    def write_shards(self, plan: list[Tensor], processes: Processes) -> None:
        """Write this process's shards, those that are not there yet."""
        names = [shard for shard, _, _ in self.source.shards()]
        counts = [len(np.load(self._places(number, name), mmap_mode="r")) for number, name in enumerate(names)]
        starts = np.cumsum([0, *counts])
        for number in range(processes.rank, len(plan), processes.world_size):
            file = self.output / _name(number)
            if not file.exists():
                with replaced_file(file) as partial, partial.open("wb") as stream:
                    for sample in self._read(plan[number].numpy(), names, starts):
                        stream.write(sample)
                    stream.write(END_OF_TAR)

    def finish(self, plan: list[Tensor]) -> None:
        """Write the labels of the new shards, and then their sizes, which say that all is there."""
        write_mapped(self.source.path / SAMPLES, ("key",), self.work / KEYS)
        keys = map_table(self.work / KEYS)["key"]
        shards = ((_name(number), self.source.table(take(keys, rows.numpy()), rows)) for number, rows in enumerate(plan))
        write_shard_labels(self.source, shards, self.output / LABELS)
        with replaced_file(self.output / SIZES) as partial:
            partial.write_text(json.dumps({_name(number): len(rows) for number, rows in enumerate(plan)}) + "\n")
        self._clean()

    def _clean(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)  # on a network disk what is still mapped stays until the process ends

    def _read(self, rows: NDArray[Any], names: list[str], starts: NDArray[Any]) -> Iterator[bytes]:
        """Yield the bytes of samples in the order of `rows`; each tar is opened once."""
        found: dict[int, bytes] = {}
        for number, some in _by_shard(rows, starts):
            places = np.load(self._places(number, names[number]), mmap_mode="r")
            with open_url(self._address(names[number])) as stream:
                for row in some:
                    start, size = places[row - starts[number]].tolist()
                    found[row] = read_part(stream, start, size, names[number])
        for row in rows.tolist():
            yield found.pop(row)

    def _places(self, number: int, shard: str) -> Path:
        """Return the file of the places in a shard; its name changes with the clusters and with the tar."""
        if number not in self._stamps:
            made_from = f"{self.source.manifest.get('data')} {self.source.manifest.get('created')} {self._address(shard)} "
            self._stamps[number] = hashlib.sha256(made_from.encode() + stamp_of(self._address(shard))).hexdigest()[:16]
        return self.work / f"{number:06d}-{self._stamps[number]}.npy"

    def _address(self, shard: str) -> str:
        """Return where a shard is now."""
        for depth in range(shard.count("/") + 1, 0, -1):
            if (address := self.addresses.get(last_parts(shard, depth))) is not None:
                return address
        raise DataError(
            f"Expected the tar {shard}, which was clustered, among those that are named, got none. Name all of them."
        )


def _read(file: Path) -> dict[str, Any]:
    """Return what an earlier run wrote."""
    try:
        return read_json(file, "json_bytes")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"Expected {file} as an earlier run wrote it, got: {one_line(error)}. Delete its folder or name another."
        ) from error


def _addresses(shards: list[str]) -> dict[str, str]:
    """Return each address by all of its endings that no other has."""
    piped = next((shard for shard in shards if shard.startswith("pipe:")), None)
    if piped is not None:
        raise UnsupportedError(f"Expected tars that can be read at any place, got {piped}. Name them by path or URL.")
    found: dict[str, str] = {}
    ambiguous = set()
    for shard in shards:
        for depth in range(1, shard.count("/") + 2):
            ending = last_parts(shard, depth)
            if found.setdefault(ending, shard) != shard:
                ambiguous.add(ending)
    return {ending: shard for ending, shard in found.items() if ending not in ambiguous}


def _by_shard(rows: NDArray[Any], starts: NDArray[Any]) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of each clustered tar that has some of the rows, with those rows, ascending."""
    ordered = np.sort(rows)
    numbers = np.searchsorted(starts, ordered, "right") - 1
    for number in np.unique(numbers).tolist():
        yield number, ordered[numbers == number].tolist()


def _name(number: int) -> str:
    return f"{number:06d}.tar"
