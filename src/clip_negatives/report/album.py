"""Thumbnails of a page; equal thumbnails are embedded once."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from clip_negatives.advice import argument
from clip_negatives.dataset import TablePairs, TarPairs
from clip_negatives.dataset.images import read_small_files
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.printing import log
from clip_negatives.report.page import caption
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.shards import ClusteredShards, ShardRows
from clip_negatives.training.same_files import check_images, check_shards

SIDE = 64  # longer side of a thumbnail in pixels
BUDGET = 8 * 2**20  # limit of all thumbnails of a page together, in bytes
QUALITY = 80  # of WebP, 0 .. 100

SmallImages = Callable[[Sequence[int], int], Iterator[Image.Image | None]]
"""Yields the images of the samples (ascending) shrunk to a square of the given side; None for an unreadable image."""


class Picture(NamedTuple):
    """Shortened text of a sample, and the id of its thumbnail in the page (None without one)."""

    text: str
    symbol: str | None


class Album:
    """Texts and thumbnails of the samples that a page shows; images beyond the budget (in bytes) are left out.

    Attributes:
        side: longer side of a thumbnail in pixels.
        symbols: thumbnails as data URIs, by id.
        missing: number of unreadable images.
        left_out: number of images left out by the budget.
    """

    def __init__(self, texts: Mapping[int, str], images: SmallImages | None, *, side: int = SIDE, budget: int = BUDGET) -> None:
        self.side = side
        self.missing = self.left_out = 0
        self.has_images = images is not None
        self._texts = texts
        self._symbol_of: dict[int, str] = {}
        samples, ids, bytes_left = sorted(texts), dict[str, str](), budget
        for index, image in zip(samples, images(samples, side) if images else (), strict=images is not None):
            if image is None:
                self.missing += 1
                continue
            stream = io.BytesIO()
            image.save(stream, "WEBP", quality=QUALITY)
            data = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
            if data not in ids:
                if len(data) > bytes_left:
                    self.left_out += 1
                    continue
                bytes_left -= len(data)
                ids[data] = f"p{len(ids)}"
            self._symbol_of[index] = ids[data]
        self.symbols = {name: data for data, name in ids.items()}

    def __getitem__(self, index: int) -> Picture:
        return Picture(caption(self._texts[index]), self._symbol_of.get(index))

    def __len__(self) -> int:
        return len(self._texts)


def images_of(folder: ClustersFolder, source: TablePairs | TarPairs | None) -> SmallImages | None:
    """Return a reader of the images: from `source` (DataError if it has other pairs), else from the paths in the folder.

    Images or tars that changed since the clusters were made are a warning.
    """
    try:
        check_images(folder)
        if isinstance(source, TarPairs):
            check_shards(ClusteredShards.of(folder), source.shards)
    except ArtifactError as error:
        log(f"the page shows files as they are now. {error}")
    if source is not None:
        places = _clustered_rows(folder, source)
        for column, values in (("key", source.keys), ("text", source.texts), ("image", source.image_paths)):
            known = folder.samples[column].to_pylist() if column in folder.samples.column_names else None
            if values is not None and known is not None and known != [values[place] for place in places]:
                given = f"{argument('data', 'source=')} ({len(places)} pairs)"
                raise DataError(
                    f"The data of {given} are not the data of the clusters in {folder.path} "
                    f"({folder.clusters.n_samples} pairs). Name the clustered data, or prepare the clusters again."
                )
        return lambda index, side: source.small_images([places[row] for row in index], side)
    if "image" not in folder.samples.column_names:
        return None
    paths = folder.samples["image"]
    return lambda index, side: read_small_files([str(paths[place].as_py()) for place in index], side)


def _clustered_rows(folder: ClustersFolder, source: TablePairs | TarPairs) -> Sequence[int]:
    """Return the rows of `source` that were not skipped when the folder was made: some images could not be decoded."""
    if not (isinstance(source, TarPairs) and folder.broken.num_rows):
        return range(len(source))
    rows = ShardRows.of(folder)
    left_out = {identity for identity, skipped in rows.left_out(folder.broken).items() if not skipped.first_is_clustered}
    identities = zip(map(rows.shards.ending, source.shard_of), source.keys, strict=True)
    return [place for place, identity in enumerate(identities) if identity not in left_out]
