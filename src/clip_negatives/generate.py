"""Write explicit incorrect pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_negatives import registry
from clip_negatives.artifacts import ClustersFolder
from clip_negatives.atomic import replaced_file
from clip_negatives.extra_texts import Captions
from clip_negatives.functional import before_training, pair_log_weights
from clip_negatives.interfaces import Clusters, IncorrectPairs, LossTerms, SamplingContext
from clip_negatives.sampling import epoch_generator
from clip_negatives.similarity import pair_similarity

ROWS = 65_536
"""Pairs of one row group of the parquet file."""

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
    folder: ClustersFolder,
    output: str | Path,
    *,
    sampler: str = "cluster_similarity",
    weighting: str = "weighted_infonce",
    per_image: int = 1,
    batch_size: int = 256,
    seed: int = 0,
) -> int:
    """Write incorrect pairs of a data set as parquet, atomically, and return how many.

    The same arguments give the same pairs. The file's own metadata say how they were made.

    Args:
        folder: the clusters.
        output: file to write; replaced if it is there.
        sampler: draws the pairs, ``name`` or ``name:key=value,...``.
        weighting: weighs them.
        per_image: pairs of each image, where there are so many.
        batch_size: batch that a sampler without an own rule for pairs draws them from.
        seed: seed of the draw.

    Raises:
        PluginError: a name or an option is unknown.
        InputError: the sampler refuses.
        ArtifactError: the file cannot be written.
    """
    clusters = folder.clusters
    size, captions = min(batch_size, clusters.n_samples), Captions(folder.samples)
    context = SamplingContext(clusters.n_samples, size, seed=seed, clusters=clusters, captions=captions)
    drawn = registry.create("negative_sampler", sampler, context).incorrect_pairs(per_image, epoch_generator(seed, 0))
    terms = before_training(registry.create("loss_weighting", weighting)(clusters), weighting)
    origin = {
        "sampler": sampler,
        "weighting": weighting,
        "seed": str(seed),
        "data": str(folder.manifest.get("data", "")),
    }
    schema = SCHEMA.with_metadata({f"clip_negatives.{name}": value for name, value in origin.items()})
    with replaced_file(Path(output)) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _row_groups(drawn, clusters, terms, folder.samples):
            writer.write_table(group)
    return len(drawn)


def _row_groups(drawn: IncorrectPairs, clusters: Clusters, terms: LossTerms, samples: pa.Table) -> Iterator[pa.Table]:
    name = samples["image" if "image" in samples.column_names else "key"]
    for start in range(0, len(drawn), ROWS):
        images, texts = drawn.image_index[start : start + ROWS], drawn.text_index[start : start + ROWS]
        here, there = pa.array(images.numpy()), pa.array(texts.numpy())
        columns: list[Any] = [
            name.take(here),
            samples["text"].take(here),
            samples["text"].take(there),
            samples["key"].take(there),
            pair_similarity(clusters.image, images, texts).numpy(),
            pair_similarity(clusters.text, images, texts).numpy(),
            torch.exp(pair_log_weights(terms, images, texts)).numpy(),
        ]
        yield pa.table(columns, schema=SCHEMA)
