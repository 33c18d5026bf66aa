"""Write the incorrect pairs that a sampler draws to a parquet file."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_negatives.batches.extras import Captions
from clip_negatives.clustering.similarity import pair_similarity
from clip_negatives.distributed.processes import ALONE, Processes
from clip_negatives.host.method import Method
from clip_negatives.host.registry import Kind
from clip_negatives.interfaces import Clusters, IncorrectPairs, LossTerms, NegativeSampler, PairsForImages, SamplingContext
from clip_negatives.losses.functional import pair_log_weights, require_terms
from clip_negatives.progress import stage
from clip_negatives.sampling import epoch_generator
from clip_negatives.storage.arrow_table import map_table, take, write_mapped
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.clusters_parts import open_clusters
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.manifest import SAMPLES
from clip_negatives.storage.output_file import PARQUET_MARK, check_output_file
from clip_negatives.storage.ownership import claim_work, clear_work, remove_work, replaced_file
from clip_negatives.storage.provenance import clusters_section, plugins_section, resolved
from clip_negatives.storage.sample_ids import group_ids, text_ids

ROWS = 65_536  # images per part; each part becomes a row group of the file
MAX_SAMPLES_WITH_IDS = 10_000_000  # above, text and group ids are not computed: they would not fit in memory
TABLE = "samples.arrow"  # memory-mapped keys, texts and paths of the samples, in the work folder

SCHEMA = pa.schema(
    {
        **dict.fromkeys(("image", "text", "incorrect_text", "incorrect_key"), pa.string()),
        **dict.fromkeys(("image_cluster_similarity", "text_cluster_similarity", "weight"), pa.float32()),
    }
)
"""``image`` is a path (a key if images are not files); ``incorrect_key`` is the sample of the incorrect text. Similarities are
cosines between the clusters of the two samples. ``weight`` is ``exp`` of the log-weight, before normalisation over a batch."""


def generate(
    folder: ClustersFolder | str | Path,
    output: str | Path,
    *,
    sampler: str = Method.sampler,
    weighting: str = Method.weighting,
    per_image: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    processes: Processes = ALONE,
) -> int:
    """Write incorrect pairs of a data set as parquet, atomically, and return their number.

    The same arguments give the same pairs on any number of processes. The metadata of the file hold sampler, weighting, seed
    and digest of the data. An interrupted call leaves its parts beside `output`; the same call continues after them.

    Memory does not grow with the data if the sampler can draw pairs for a part of the images
    (`clip_negatives.interfaces.PairsForImages`). Other samplers draw all pairs at once.

    Args:
        folder: the contents of a clusters folder, or its path; from a path, only the needed files are read.
        output: file to write; an older file of this function is replaced.
        sampler: ``name`` or ``name:key=value,...``.
        weighting: weighting of the pairs, ``name`` or ``name:key=value,...``.
        per_image: maximum number of pairs per image.
        batch_size: batch size of samplers that draw pairs from batches.
        seed: seed of the draw.
        processes: the processes that share the work; each calls this function.

    Raises:
        PluginError: a name or an option is unknown.
        InputError: the sampler cannot use the clusters.
        ArtifactError: the file cannot be written, or exists and was not written by this package.
    """
    output, method = processes.together(lambda: check_output_file(output)), Method(sampler, weighting)
    if isinstance(folder, ClustersFolder):
        path, clusters, manifest = folder.path, folder.clusters, folder.manifest
    else:
        path = Path(folder)
        opened = processes.together(lambda: open_clusters(path))
        clusters, manifest = opened.clusters, opened.manifest
    origin = {"sampler": sampler, "weighting": weighting, "seed": str(seed), "data": str(manifest.get("data", ""))}
    specs: list[tuple[Kind, str]] = [("negative_sampler", sampler), ("loss_weighting", weighting)]
    made_by = {"specs": list(itertools.starmap(resolved, specs)), "plugins": plugins_section(specs)}
    made_from = {"clusters": clusters_section(manifest), "created": manifest.get("created")}
    plan = {**origin, **made_by, **made_from, "per_image": per_image, "batch_size": batch_size, "rows": ROWS}
    work = output.with_name(f".{output.name}.parts")
    with ExitStack() as stack:
        processes.first(lambda: stack.enter_context(sole_user(output)))
        processes.first(lambda: _claim(work, plan))
        stack.callback(_remove_without_parts, work, processes)
        with stage("Preparing sampler and weighting"):
            processes.first(lambda: write_mapped(path / SAMPLES, ("key", "text", "image", "group"), work / TABLE))
            samples = processes.together(lambda: map_table(work / TABLE))
            if clusters.texts is None and clusters.n_samples <= MAX_SAMPLES_WITH_IDS:
                clusters = dataclasses.replace(clusters, texts=text_ids(samples), groups=group_ids(samples))
            size = min(batch_size, clusters.n_samples)
            context = SamplingContext.of(clusters, size, seed=seed, captions=Captions(samples))
            pairs = processes.together(lambda: _Pairs(method.create_sampler(context), clusters.n_samples, per_image, seed))
            terms_for = processes.together(method.create_weighting)
            terms = processes.together(lambda: require_terms(terms_for(clusters), weighting))

        parts = [work / f"{number:06d}.parquet" for number in range(len(pairs))]

        def write(number: int) -> int:
            file = parts[number]
            if not _is_complete(file):
                with replaced_file(file) as partial:
                    pq.write_table(_table(pairs.part(number), clusters, terms, samples), partial, compression="zstd")
                running.advance()
            return int(pq.read_metadata(file).num_rows)

        n_missing = sum(not _is_complete(file) for file in processes.mine(parts))
        with stage("Writing incorrect pairs", n_missing, "parts") as running:
            counts = processes.divided(write, range(len(parts)))
        with stage("Joining the parts"):
            processes.first(lambda: _join(parts, output, origin))
        processes.first(lambda: remove_work(work))
        return sum(counts)


class _Pairs:
    """Incorrect pairs in parts; a part depends only on its number and the seed."""

    def __init__(self, sampler: NegativeSampler, n_samples: int, per_image: int, seed: int) -> None:
        self._n_samples, self._per_image, self._seed = n_samples, per_image, seed
        self._source: PairsForImages | IncorrectPairs = (
            sampler if isinstance(sampler, PairsForImages) else sampler.incorrect_pairs(per_image, epoch_generator(seed, 0))
        )

    def __len__(self) -> int:
        rows = len(self._source) if isinstance(self._source, IncorrectPairs) else self._n_samples
        return max(1, -(-rows // ROWS))

    def part(self, number: int) -> IncorrectPairs:
        start, stop = number * ROWS, (number + 1) * ROWS
        if isinstance(self._source, IncorrectPairs):
            return IncorrectPairs(self._source.image_index[start:stop], self._source.text_index[start:stop])
        images = torch.arange(start, min(stop, self._n_samples))
        return self._source.incorrect_pairs_of(images, self._per_image, epoch_generator(self._seed, number))


def _table(pairs: IncorrectPairs, clusters: Clusters, terms: LossTerms, samples: pa.Table) -> pa.Table:
    images, texts = pairs.image_index, pairs.text_index
    columns: list[Any] = [
        take(samples["image" if "image" in samples.column_names else "key"], images.numpy()),
        take(samples["text"], images.numpy()),
        take(samples["text"], texts.numpy()),
        take(samples["key"], texts.numpy()),
        pair_similarity(clusters.image, images, texts).numpy(),
        pair_similarity(clusters.text, images, texts).numpy(),
        torch.exp(pair_log_weights(terms, images, texts)).numpy(),
    ]
    return pa.table(columns, schema=SCHEMA)


def _claim(work: Path, plan: dict[str, Any]) -> None:
    """Make the folder of the parts; remove the parts of an earlier call with another plan."""
    claim_work(work)
    file, text = work / "plan.json", json.dumps(plan)
    if not file.is_file() or file.read_text() != text:
        clear_work(work)
        with replaced_file(file) as partial:
            partial.write_text(text)


def _remove_without_parts(work: Path, processes: Processes) -> None:
    """Remove the folder of the parts after an error, if it has none."""
    if processes.rank == 0 and not any(work.glob("*.parquet")):
        remove_work(work)


def _is_complete(part: Path) -> bool:
    with suppress(OSError, pa.ArrowInvalid):
        pq.read_metadata(part)
        return True
    return False


def _join(parts: Sequence[Path], output: Path, origin: dict[str, str]) -> None:
    """Write the parts to one file, each as a row group."""
    schema = SCHEMA.with_metadata({**PARQUET_MARK, **{f"clip_negatives.{name}": value for name, value in origin.items()}})
    with replaced_file(output) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).replace_schema_metadata(schema.metadata))
