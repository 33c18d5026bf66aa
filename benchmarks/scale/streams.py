"""Count the false negatives of batches that are composed in different ways: python benchmarks/scale/streams.py [--small].

No image is read: labels and groups are enough. The data are the catalogue, and a million made-up samples of which a few groups
are large. Their tars are sorted by topic, or hold random samples. The
processes compose their batches separately, except for the sampler on a table. An image meets the texts of all processes.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip_train.data import _SAMPLE_SHUFFLE_INITIAL, _SAMPLE_SHUFFLE_SIZE
from run import result_file, write_json
from webdataset.filters import _shuffle

from clip_negatives import Method, Recipe, catalogue, prepare
from clip_negatives.catalogue.export import export
from clip_negatives.clustering.similarity import similarities
from clip_negatives.interfaces import Clustering, Clusters, SamplingContext

Samples = NDArray[np.int64]  # sample numbers in the order of a stream

BUFFERS = (1000, 5000, 20_000)
# Samples of a batch, and processes.
CASES = {"catalogue": [(256, 1), (4096, 1)], "made up": [(256, 1), (256, 8), (4096, 1)]}
N, CLUSTERS, GROUPS, TOPICS, DIM = 10**6, 4000, 100_000, 200, 32  # of the made-up data
STRAY = 0.1  # share of samples in another cluster than the rest of their group
COUNTED = 200  # batches that are counted, evenly over the epoch


@dataclass(frozen=True)
class Data:
    """Labels of samples, whose order is that of their topics."""

    name: str
    clusters: Clusters
    groups: Samples
    topics: Samples
    per_tar: int


def main() -> None:
    """Count, and write the result file."""
    small = "--small" in sys.argv
    rows = []
    for data in (of_catalogue(), made_up(20_000 if small else N)):
        for order in ("sorted by topic", "random"):
            rows += [{"data": data.name, "tars": order, **row} for row in counted(data, order)]
    print(json.dumps(rows, indent=1))
    about = {"measured": "false negatives for each image of a batch", "sizes": {"samples": N, "clusters": CLUSTERS}}
    print(f"Results: {write_json(result_file('scale-streams.json', small=small), {**about, 'rows': rows})}")


def of_catalogue() -> Data:
    """Return the training split of the catalogue, clustered by the default recipe."""
    listings = catalogue.load("train")
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), split="train")
        clusters = prepare(f"{folder}/train.csv", f"{folder}/clusters", Recipe(), progress=False).clusters
        clusters = Clusters(clusters.image, clusters.text, **similarities(clusters.image, clusters.text))
    groups, topics = (np.unique(listings.column(name), return_inverse=True)[1] for name in ("item", "subgroup"))
    return Data("catalogue", clusters, groups, topics, 500)


def made_up(n: int) -> Data:
    """Return samples in groups of very different sizes. Most samples of a group share an image cluster and a text cluster."""
    random_numbers = np.random.default_rng(0)
    k = CLUSTERS * n // N if n < N else CLUSTERS
    weights = 1 / (np.arange(GROUPS * n // N) + 20)
    groups = random_numbers.choice(len(weights), n, p=weights / weights.sum())
    n_topics = min(TOPICS, k)
    sides, topic_of_group = [], random_numbers.integers(n_topics, size=len(weights))
    centres = F.normalize(torch.from_numpy(random_numbers.standard_normal((n_topics, DIM), np.float32)), dim=1)
    for _ in range(2):
        cluster_of_group = topic_of_group + n_topics * random_numbers.integers(k // n_topics, size=len(weights))
        labels = np.where(random_numbers.random(n) < STRAY, random_numbers.integers(k, size=n), cluster_of_group[groups])
        labels[:k] = np.arange(k)  # no cluster is empty
        noise = torch.from_numpy(random_numbers.standard_normal((k, DIM), np.float32)) / DIM**0.5
        sides.append(Clustering(torch.from_numpy(labels), F.normalize(centres[torch.arange(k) % n_topics] + noise, dim=1)))
    clusters = Clusters(*sides, **similarities(*sides))
    return Data("made up", clusters, groups, topic_of_group[groups], 10_000 if n == N else 500)


def counted(data: Data, order: str) -> Iterator[dict[str, Any]]:
    """Yield the false negatives of each way to compose batches."""
    random_numbers = np.random.default_rng(1)
    samples = random_numbers.permutation(len(data.groups))
    if order != "random":
        samples = samples[np.argsort(data.topics[samples], kind="stable")]
    stream = shards_shuffled(samples, data.per_tar, random_numbers)
    plain = shuffled(stream)
    resharded = shuffled(planned(data, data.per_tar).ravel())
    for size, processes in CASES[data.name]:
        ways: dict[str, Callable[[], Samples]] = {
            "stream of open_clip": lambda size=size: cut(plain, size),
            "reshard, stream of open_clip": lambda size=size: cut(resharded, size),
            **{f"buffer of {n:,}": lambda size=size, n=n: composed(data, stream, n, size) for n in BUFFERS if n > size},
            "random samples of all": lambda size=size: cut(random_numbers.permutation(samples), size),
        }
        for way, batches in ways.items():
            count = false_negatives(data.groups[together(batches(), processes)])
            yield {"batch": size, "processes": processes, "way": way, "per_anchor": round(count, 4)}
        count = false_negatives(data.groups[planned(data, size * processes)])
        yield {"batch": size, "processes": processes, "way": "sampler on a table", "per_anchor": round(count, 4)}


def together(batches: Samples, processes: int) -> Samples:
    """Return the batches of several processes, which read different tars, as one, shape (steps, processes * size)."""
    steps, size = len(batches) // processes, batches.shape[1]
    return batches[: steps * processes].reshape(processes, steps, size).swapaxes(0, 1).reshape(steps, processes * size)


def shards_shuffled(samples: Samples, per_tar: int, random_numbers: np.random.Generator) -> Samples:
    """Return the samples with the tars in random order."""
    tars = [samples[start : start + per_tar] for start in range(0, len(samples), per_tar)]
    return np.concatenate([tars[number] for number in random_numbers.permutation(len(tars))])


def shuffled(samples: Samples) -> Samples:
    """Return the samples as webdataset shuffles them for open_clip."""
    return np.fromiter(_shuffle(iter(samples), _SAMPLE_SHUFFLE_SIZE, _SAMPLE_SHUFFLE_INITIAL, random.Random(0)), np.int64)


def cut(samples: Samples, size: int) -> Samples:
    """Return full batches, shape (steps, size)."""
    return samples[: len(samples) // size * size].reshape(-1, size)


def planned(data: Data, size: int) -> Samples:
    """Return the batches of the default sampler, shape (steps, size)."""
    plan = Method().create_sampler(SamplingContext.of(data.clusters, size)).planned(0)
    return plan.numpy().astype(np.int64).reshape(-1, size)


def composed(data: Data, stream: Samples, n: int, size: int) -> Samples:
    """Return batches that take from a buffer of `n` samples its share of every cluster, shape (steps, size).

    The buffer is sorted by image cluster and text cluster, and cut into `size` runs; the batch has a random sample of each.
    """
    random_numbers = np.random.default_rng(2)
    labels = [clustering.labels.numpy() for clustering in (data.clusters.image, data.clusters.text)]
    cells = labels[0] * data.clusters.text.n_clusters + labels[1]
    buffer, batches = stream[:0], []
    steps = len(stream) // size
    for step in range(steps):
        buffer = np.concatenate([buffer, stream[n * (step > 0) + (step - 1) * size * (step > 0) : n + step * size]])
        buffer = random_numbers.permutation(buffer)
        buffer = buffer[np.argsort(cells[buffer], kind="stable")]
        edges = np.arange(size + 1) * len(buffer) // size
        places = random_numbers.integers(edges[:-1], edges[1:])
        batches.append(buffer[places])
        buffer = np.delete(buffer, places)
    return np.stack(batches)


def false_negatives(groups: Samples) -> float:
    """Return the mean number of false negatives of an image, as `clip_negatives.metrics` counts them."""
    chosen = groups[np.unique(np.linspace(0, len(groups) - 1, COUNTED).astype(int))]
    sizes = [np.unique(batch, return_counts=True)[1] for batch in chosen]
    return sum(int((size * (size - 1)).sum()) for size in sizes) / chosen.size


if __name__ == "__main__":
    main()
