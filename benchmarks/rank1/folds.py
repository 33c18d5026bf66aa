"""Folds of a data set: listings to train on, listings to query, and their frozen features."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from studies import CACHE
from torch import Tensor

from clip_negatives import Clusters, Recipe, catalogue
from clip_negatives.clustering.fit import cluster_features
from clip_negatives.encoders import Encoder, image_encoder, text_encoder
from clip_negatives.storage.sample_ids import integer_ids

FOLDS = ("validation", "test")
EMOJI, VAGUE, FULL = "emoji", "vague", "full"
"""The source that ships with the package, the same with vague texts, and its full build with every skin tone."""

PLAIN = "0"  # skin tone of the queries


def cache_of(study: dict[str, Any]) -> Path:
    """Return the cache folder."""
    return Path(study.get("cache", CACHE))


def load(study: dict[str, Any], source: str) -> catalogue.Catalogue:
    """Return all listings of a source."""
    if source == EMOJI:
        return catalogue.load("all")
    if source == VAGUE:
        return catalogue.Catalogue(vague(catalogue.load("all").table))
    file = cache_of(study) / (f"{FULL}/catalogue.parquet" if source == FULL else f"{source}.parquet")
    if not file.exists():
        build = (
            f"catalogue/build.py --full --size 64 --output {file.parent}" if source == FULL else f"rank1/packages.py {source}"
        )
        raise SystemExit(f"{file} is missing. Write it: python benchmarks/{build}")
    return catalogue.Catalogue(pq.read_table(file))


def vague(table: pa.Table) -> pa.Table:
    """Return listings without the words that all listings of an item share, such as its label.

    A text is a list of words between commas; a text that would become empty stays.
    """
    words = [text.split(", ") for text in table["text"].to_pylist()]
    items = table["item"].to_pylist()
    shared: dict[str, set[str]] = {}
    for item, some in zip(items, words, strict=True):
        shared[item] = shared.get(item, set(some)) & set(some)
    left = [
        ", ".join([word for word in some if word not in shared[item]] or some) for item, some in zip(items, words, strict=True)
    ]
    return table.set_column(table.column_names.index("text"), "text", pa.array(left))


@dataclass(frozen=True, eq=False)
class Cut:
    """Rows of a source that a fold trains on and queries."""

    listings: catalogue.Catalogue  # all listings of the source
    trained: Tensor  # rows to train on
    asked: Tensor  # rows of the queries and the gallery, one of each item

    @classmethod
    def of(cls, study: dict[str, Any], data: str, fold: str) -> Cut:
        """Return a fold.

        A source with sellers (styles) queries the listings of a held-out seller: one style for "validation", the split "test"
        for "test". A source without sellers has its own splits, by groups that share no picture and no text.
        """
        how = study["data"][data]
        listings = load(study, how.get("source", EMOJI))
        table = listings.table
        chosen = _among(table, "split", ["train"])
        if "style" in table.column_names:
            for column, allowed in (("style", "styles"), ("tone", "tones"), ("group", "groups")):
                if allowed in how:
                    chosen &= _among(table, column, how[allowed])
            held = _among(table, "style", [study["validation_style"]])
            asked = _among(table, "split", ["test"])
            if fold == "validation":
                asked = held & _among(table, "split", ["train"]) & _among(table, "tone", [PLAIN])
                chosen &= ~held
            trained = {table["item"][row].as_py() for row in chosen.nonzero().flatten().tolist()}
            asked &= _among(table, "item", sorted(trained))
        else:
            asked = _among(table, "split", [fold])
            if fold == "test":
                chosen |= _among(table, "split", ["validation"])
        first: dict[str, int] = {}
        for row in asked.nonzero().flatten().tolist():
            first.setdefault(table["item"][row].as_py(), row)
        return cls(listings, chosen.nonzero().flatten(), torch.tensor(list(first.values())))

    def near_duplicates(self, batch_size: int) -> float:
        """Return the mean number of other samples of the same item in a batch."""
        counts = Counter(self.column("item", self.trained)).values()
        n = sum(counts)
        return sum(count * (count - 1) for count in counts) / n * (min(batch_size, n) - 1) / (n - 1)

    def column(self, name: str, rows: Tensor) -> list[str]:
        """Return a column of these rows."""
        return [str(value) for value in self.listings.table[name].take(pa.array(rows.numpy())).to_pylist()]


@dataclass(frozen=True, eq=False)
class Fold:
    """Frozen features and clusters of a fold."""

    clusters: Clusters  # clusters and features of the training listings
    query_images: Tensor  # image features, one row for each query item
    query_texts: Tensor  # text features, one row for each query item
    near_duplicates: float  # see `Cut.near_duplicates`
    captions: list[str]  # texts of the training listings
    clustering_seconds: float  # CPU time of clustering both sides

    @classmethod
    def of(cls, study: dict[str, Any], data: str, fold: str) -> Fold:
        """Return a fold with its clusters."""
        cut = Cut.of(study, data, fold)
        how = study["data"][data]
        image, text = features(study, how.get("source", EMOJI))
        clusterer = how.get("clusterer", Recipe.clusterer)
        started = time.process_time()
        clusters = cluster_features(image[cut.trained], text[cut.trained], clusterer=clusterer, seed=0)
        seconds = time.process_time() - started
        captions = cut.column("text", cut.trained)
        clusters = replace(clusters, groups=integer_ids(cut.column("item", cut.trained)), texts=integer_ids(captions))
        near_duplicates = cut.near_duplicates(batch_size(study, data))
        return cls(clusters, image[cut.asked], text[cut.asked], near_duplicates, captions, seconds)


def batch_size(study: dict[str, Any], data: str) -> int:
    """Return the batch size of a data set of the study."""
    return int(study["data"][data].get("batch_size", study["batch_size"]))


def features_file(study: dict[str, Any], source: str) -> Path:
    """Return the file of the features of a source."""
    digest = hashlib.sha256(f"{study['image_encoder']} {study['text_encoder']} {source}".encode()).hexdigest()[:12]
    return cache_of(study) / f"features-{source}-{digest}.pt"


def features(study: dict[str, Any], source: str) -> tuple[Tensor, Tensor]:
    """Return the frozen unit-norm features of all images and texts of a source; they are encoded once."""
    file = features_file(study, source)
    if not file.exists():
        listings = load(study, source)
        train = _among(listings.table, "split", ["train"]).nonzero().flatten().tolist()
        texts = _encoded(text_encoder(study["text_encoder"]), listings.column("text"), train)
        if source == VAGUE:  # the same pictures
            encoded = features(study, EMOJI)[0], texts
        else:
            images = [listings.image(row) for row in range(len(listings))]
            encoded = _encoded(image_encoder(study["image_encoder"]), images, train), texts
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(encoded, file)
    image, text = torch.load(file)
    return image, text


def _encoded(encoder: Encoder, samples: Sequence[Any], train: Sequence[int]) -> Tensor:
    """Return the features of samples; an encoder is fitted on the training split."""
    if encoder.learn is not None:
        encoder.learn([samples[row] for row in train])
    raw = encoder.encode(samples)
    project = encoder.fit(raw[train]) if encoder.fit is not None else None
    return F.normalize((raw if project is None else project(raw)).float(), dim=1)


def _among(table: pa.Table, column: str, allowed: Sequence[str]) -> Tensor:
    found = pc.is_in(pc.cast(table[column], pa.string()), value_set=pa.array(allowed))
    return torch.from_numpy(found.to_numpy(zero_copy_only=False).astype(bool))
