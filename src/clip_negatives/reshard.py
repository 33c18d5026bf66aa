"""Write webdataset shards anew, each with the samples that a negative sampler puts together."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from webdataset.tariterators import base_plus_ext

from clip_negatives import registry
from clip_negatives.artifacts import SAMPLES
from clip_negatives.atomic import refuse_foreign, replaced_file, sole_user
from clip_negatives.dataset.urls import expand_urls, open_url
from clip_negatives.errors import DataError, InputError, UnsupportedError
from clip_negatives.interfaces import Clusters, SamplingContext
from clip_negatives.labels import LabelledSamples, last_parts, write_shard_labels
from clip_negatives.mapped import map_table, take, write_mapped
from clip_negatives.processes import ALONE, Processes
from clip_negatives.similarity import similarities

PLAN, SIZES, LABELS = "plan.json", "sizes.json", "labels"
"""What it is made from, the samples of each shard as open_clip reads them, and the labels folder of the new shards."""

KEYS = "keys.arrow"
"""The keys of all samples while they are looked up."""

END_OF_TAR = bytes(1024)
BLOCK = 512
"""Bytes that the contents of a file in a tar are filled up to."""


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
        processes.first(lambda: stack.enter_context(sole_user(job.work)))
        processes.first(job.claim)
        if processes.first(job.is_done):
            return Resharded(len(json.loads((output / SIZES).read_text())), job.n_samples)
        processes.together(lambda: job.find_samples(processes))
        plan = processes.together(job.plan)
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
        refuse_foreign(output, known_by=PLAN)

    def claim(self) -> None:
        """Begin a folder for this very plan, or go on with it."""
        made_from = {
            name: self.source.manifest.get(name) for name in ("data", "clusterer", "text_clusterer", "seed", "created")
        }
        plan = {"clusters": made_from, "sampler": self.sampler, "samples_per_shard": self.size, "seed": self.seed}
        file = self.output / PLAN
        if file.exists() and json.loads(file.read_text()) != plan:
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
            file = self.work / f"{number:06d}.npy"
            if number % processes.world_size != processes.rank or file.exists():
                continue
            places = _places(self._address(shard))
            lacking = next((key for key in keys.to_pylist() if key not in places), None)
            if lacking is not None:
                raise DataError(f"Expected the sample {lacking} in {self._address(shard)}, as it was clustered, got none.")
            with replaced_file(file) as partial, partial.open("wb") as stream:
                np.save(stream, np.array([places[key] for key in keys.to_pylist()], dtype=np.int64))

    def plan(self) -> list[Tensor]:
        """Return the samples of each new shard."""
        source = self.source
        clusters = Clusters(source.image, source.text, **similarities(source.image, source.text))
        context = SamplingContext(self.n_samples, self.size, seed=self.seed, clusters=clusters)
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
        starts = np.cumsum([0, *(len(np.load(self.work / f"{number:06d}.npy", mmap_mode="r")) for number in range(len(names)))])
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
        for file in self.work.iterdir():
            file.unlink()
        self.work.rmdir()

    def _read(self, rows: NDArray[Any], names: list[str], starts: NDArray[Any]) -> Iterator[bytes]:
        """Yield the bytes of samples in the order of `rows`; each tar is opened once."""
        found: dict[int, bytes] = {}
        for number, some in itertools.groupby(
            sorted(rows.tolist()), key=lambda row: int(np.searchsorted(starts, row, "right")) - 1
        ):
            places = np.load(self.work / f"{number:06d}.npy", mmap_mode="r")
            with open_url(self._address(names[number])) as stream:
                for row in some:
                    start, size = places[row - starts[number]].tolist()
                    found[row] = _part(stream, start, size, names[number])
        for row in rows.tolist():
            yield found.pop(row)

    def _address(self, shard: str) -> str:
        """Return where a shard is now."""
        for depth in range(shard.count("/") + 1, 0, -1):
            if (address := self.addresses.get(last_parts(shard, depth))) is not None:
                return address
        raise DataError(
            f"Expected the tar {shard}, which was clustered, among those that are named, got none. Name all of them."
        )


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


def _places(address: str) -> dict[str, tuple[int, int]]:
    """Return first byte and size of each sample of a tar, by its key."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with open_url(address) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for key, members in itertools.groupby(
                (one for one in tar if one.isfile()), key=lambda one: base_plus_ext(one.name)[0]
            ):
                files = list(members)
                end = files[-1].offset_data + -(-files[-1].size // BLOCK) * BLOCK
                places[key] = files[0].offset, end - files[0].offset
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"Expected a readable tar, got {address}: {error}. Write the shard again.") from error
    return places


def _by_shard(rows: NDArray[Any], starts: NDArray[Any]) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of each clustered tar that has some of the rows, with those rows, ascending."""
    ordered = np.sort(rows)
    numbers = np.searchsorted(starts, ordered, "right") - 1
    for number in np.unique(numbers).tolist():
        yield number, ordered[numbers == number].tolist()


def _part(stream: IO[bytes], start: int, size: int, name: str) -> bytes:
    stream.seek(start)
    found = stream.read(size)
    if len(found) != size:
        raise DataError(f"Expected {size} bytes at {start} of {name}, got {len(found)}: it changed meanwhile. Start again.")
    return found


def _name(number: int) -> str:
    return f"{number:06d}.tar"
