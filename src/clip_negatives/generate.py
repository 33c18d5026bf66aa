"""Write explicit incorrect pairs."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_negatives import registry
from clip_negatives.artifacts import SAMPLES, ClustersFolder, codes, map_clusters
from clip_negatives.atomic import changing, replaced_file, sole_user
from clip_negatives.errors import ArtifactError
from clip_negatives.extra_texts import Captions
from clip_negatives.functional import before_training, pair_log_weights
from clip_negatives.interfaces import Clusters, IncorrectPairs, LossTerms, NegativeSampler, PairsOfSome, SamplingContext
from clip_negatives.mapped import map_table, take, write_mapped
from clip_negatives.processes import ALONE, Processes
from clip_negatives.sampling import epoch_generator
from clip_negatives.similarity import pair_similarity

ROWS = 65_536
"""Images whose pairs are drawn at a time, and make a row group of the file."""

TEXTS_UP_TO = 10_000_000
"""Samples up to which a weighting is told which texts and groups are equal; of more that takes too much memory."""

TABLE = "samples.arrow"
"""Keys, texts and paths of the samples while they are looked up."""

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("text", pa.string()),
        ("incorrect_text", pa.string()),
        ("incorrect_key", pa.string()),
        ("image_cluster_similarity", pa.float32()),
        ("text_cluster_similarity", pa.float32()),
        ("weight", pa.float32()),
    ]
)
"""Columns: path of the image (or key, where images are not files), its correct text, the text put in its place, the
key of the sample that text is from, cosine between the two image clusters and between the two text clusters, and the
weight of the pair: ``exp`` of its log-weight, before the normalisation that only a batch has."""


def generate(
    folder: ClustersFolder | str | Path,
    output: str | Path,
    *,
    sampler: str = "cluster_similarity",
    weighting: str = "weighted_infonce",
    per_image: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    processes: Processes = ALONE,
) -> int:
    """Write incorrect pairs of a data set as parquet, atomically, and return how many.

    The same arguments give the same pairs, on any number of processes. The file's own metadata say how they were made.

    A part of the images is drawn, looked up and written at a time, so that memory does not grow with the data, where the
    sampler can draw pairs of some images (`clip_negatives.interfaces.PairsOfSome`); another draws them all at once. A call
    that is interrupted leaves its parts beside `output`, and the next one with the same arguments goes on after them.

    Args:
        folder: the clusters, or their folder, of which then only what is looked up is read.
        output: file to write; replaced if it is there.
        sampler: draws the pairs, ``name`` or ``name:key=value,...``.
        weighting: weighs them.
        per_image: pairs of each image, where there are so many.
        batch_size: batch that a sampler without an own rule for pairs draws them from.
        seed: seed of the draw.
        processes: those that share the work; each makes this call.

    Raises:
        PluginError: a name or an option is unknown.
        InputError: the sampler refuses.
        ArtifactError: the file cannot be written.
    """
    output = Path(output).absolute()
    if isinstance(folder, ClustersFolder):
        path, clusters, manifest = folder.path, folder.clusters, folder.manifest
    else:
        path = Path(folder)
        clusters, manifest = processes.together(lambda: map_clusters(path))
    origin = {"sampler": sampler, "weighting": weighting, "seed": str(seed), "data": str(manifest.get("data", ""))}
    work = output.with_name(f".{output.name}.parts")
    with ExitStack() as stack:
        processes.first(lambda: stack.enter_context(_work_folder(work, output)))
        claim = {**origin, "per_image": per_image, "batch_size": batch_size, "created": manifest.get("created"), "rows": ROWS}
        processes.first(lambda: _claim(work, claim))
        processes.first(lambda: write_mapped(path / SAMPLES, ("key", "text", "image", "group"), work / TABLE))
        samples = processes.together(lambda: map_table(work / TABLE))
        if clusters.texts is None and clusters.n_samples <= TEXTS_UP_TO:
            groups = codes(samples["group"]) if "group" in samples.column_names else None
            clusters = dataclasses.replace(clusters, texts=codes(samples["text"]), groups=groups)
        size = min(batch_size, clusters.n_samples)
        context = SamplingContext(clusters.n_samples, size, seed=seed, clusters=clusters, captions=Captions(samples))
        draw = functools.partial(_Pairs, n_samples=clusters.n_samples, per_image=per_image, seed=seed)
        pairs = processes.together(lambda: draw(registry.create("negative_sampler", sampler, context)))
        weigh = processes.together(lambda: registry.create("loss_weighting", weighting))
        terms = processes.together(lambda: before_training(weigh(clusters), weighting))

        def write(part: int) -> int:
            file = work / f"{part:06d}.parquet"
            if (count := _count(file)) is not None:
                return count
            with replaced_file(file) as partial:
                pq.write_table(_table(pairs.part(part), clusters, terms, samples), partial, compression="zstd")
            return int(pq.read_metadata(file).num_rows)

        parts = range(len(pairs))
        counts = processes.divided(write, parts)
        processes.first(lambda: _join(work, parts, output, origin))
        return sum(counts)


class _Pairs:
    """Draw the pairs of a part of the images; parts depend on their number and the seed alone."""

    def __init__(self, sampler: NegativeSampler, n_samples: int, per_image: int, seed: int) -> None:
        self._n_samples, self._per_image, self._seed = n_samples, per_image, seed
        self._sampler = sampler if isinstance(sampler, PairsOfSome) else None
        self._all = None if self._sampler is not None else sampler.incorrect_pairs(per_image, epoch_generator(seed, 0))

    def __len__(self) -> int:
        """Return how many parts there are."""
        return max(1, -(-(self._n_samples if self._all is None else len(self._all)) // ROWS))

    def part(self, number: int) -> IncorrectPairs:
        """Return the pairs of a part."""
        start = number * ROWS
        if self._sampler is not None:
            images = torch.arange(start, min(start + ROWS, self._n_samples))
            return self._sampler.incorrect_pairs_of(images, self._per_image, epoch_generator(self._seed, number))
        if self._all is None:
            raise ValueError("Expected pairs of all images or a sampler of those of some, got neither.")
        some = slice(start, start + ROWS)
        return IncorrectPairs(self._all.image_index[some], self._all.text_index[some])


def _table(drawn: IncorrectPairs, clusters: Clusters, terms: LossTerms, samples: pa.Table) -> pa.Table:
    images, texts = drawn.image_index, drawn.text_index
    name = samples["image" if "image" in samples.column_names else "key"]
    columns: list[Any] = [
        take(name, images.numpy()),
        take(samples["text"], images.numpy()),
        take(samples["text"], texts.numpy()),
        take(samples["key"], texts.numpy()),
        pair_similarity(clusters.image, images, texts).numpy(),
        pair_similarity(clusters.text, images, texts).numpy(),
        torch.exp(pair_log_weights(terms, images, texts)).numpy(),
    ]
    return pa.table(columns, schema=SCHEMA)


@contextmanager
def _work_folder(work: Path, output: Path) -> Iterator[None]:
    """Hold the folder of the parts; nothing is left of it where nothing was written there."""
    if output.is_dir():
        raise ArtifactError(f"Expected the name of a file to write, got {output}, which is a folder. Name a file in it.")
    with sole_user(work):
        try:
            yield
        finally:
            if work.exists() and not any(work.glob("*.parquet")):
                shutil.rmtree(work, ignore_errors=True)  # what keeps it is no error, or that of the block


def _claim(work: Path, claim: dict[str, Any]) -> None:
    """Keep the parts of an earlier call with the same arguments; others go."""
    file, told = work / "plan.json", json.dumps(claim)
    if not file.exists() or file.read_text() != told:
        with changing(work):
            for item in work.iterdir():
                item.unlink()
        with replaced_file(file) as partial:
            partial.write_text(told)


def _count(file: Path) -> int | None:
    """Return the rows of a part, or None where it is not there or cut."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowInvalid):
        return None


def _join(work: Path, parts: Sequence[int], output: Path, origin: dict[str, str]) -> None:
    """Write the parts as one file, a row group of each at a time, and let them go."""
    schema = SCHEMA.with_metadata({f"clip_negatives.{name}": value for name, value in origin.items()})
    with replaced_file(output) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pq.read_table(work / f"{part:06d}.parquet").replace_schema_metadata(schema.metadata))
    shutil.rmtree(work, ignore_errors=True)  # on a network disk what is still mapped stays until the process ends
