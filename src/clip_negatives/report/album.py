"""Pictures of samples, small and each embedded once, however often it is shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from clip_negatives.artifacts import ClustersFolder
from clip_negatives.dataset import CsvPairs, TarPairs
from clip_negatives.dataset.source import read_small_files
from clip_negatives.errors import DataError
from clip_negatives.report.formats import caption

SIDE = 64
"""Pixels of the longer side of a picture."""

BUDGET = 8 * 2**20
"""Bytes that all pictures of a page may take."""

QUALITY = 80
"""Quality of WebP, 0 .. 100."""

SmallImages = Callable[[Sequence[int], int], Iterator[Image.Image | None]]
"""Yields the images of some samples, in ascending order, to fit a square; None for one that cannot be read."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Hold what is shown of a sample.

    Attributes:
        text: its text, shortened.
        symbol: the picture in the page; None where there is none.
    """

    text: str
    symbol: str | None


class Album:
    """Hold the pictures and texts of the samples that a page shows.

    Args:
        texts: the text of each of them.
        images: reads images; None where there are none.
        budget: bytes of all pictures; what is over it stays without one.

    Attributes:
        symbols: the pictures of the page, by name, as data URIs.
        missing: how many images could not be read.
        left_out: how many had no more room.
    """

    def __init__(self, texts: Mapping[int, str], images: SmallImages | None, *, budget: int = BUDGET) -> None:
        self.symbols: dict[str, str] = {}
        self.missing = self.left_out = 0
        self.has_images = images is not None
        self._texts = texts
        self._symbol_of: dict[int, str] = {}
        wanted, known, left = sorted(texts), dict[str, str](), budget
        for index, image in zip(wanted, images(wanted, SIDE) if images else (), strict=images is not None):
            if image is None:
                self.missing += 1
                continue
            data = _data_uri(image)
            if data not in known and len(data) > left:
                self.left_out += 1
                continue
            if data not in known:
                left -= len(data)
                known[data] = f"p{len(known)}"
            self._symbol_of[index] = known[data]
        self.symbols = {name: data for data, name in known.items()}

    def __getitem__(self, index: int) -> Picture:
        """Return what is shown of a sample."""
        return Picture(caption(self._texts[index]), self._symbol_of.get(index))

    def __len__(self) -> int:
        """Return how many samples are shown."""
        return len(self._texts)


def images_of(folder: ClustersFolder, source: CsvPairs | TarPairs | None) -> SmallImages | None:
    """Return what reads the images of a data set: from its source where that is given, else from the paths in the folder.

    Raises:
        DataError: the source has other pairs than the folder.
    """
    if source is not None:
        # Broken samples are in the data and not in the folder.
        broken = set(folder.broken["key"].to_pylist())
        places = [place for place, key in enumerate(source.keys) if key not in broken]
        for column, values in (("key", source.keys), ("text", source.texts)):
            if folder.samples[column].to_pylist() != [values[place] for place in places]:
                raise DataError(
                    f"Expected the data that the clusters at {folder.path} were made of, got other pairs ({len(places)} for "
                    f"{folder.clusters.n_samples}). Name those data, or prepare the clusters again."
                )
        return lambda index, side: source.small_images([places[row] for row in index], side)
    if "image" not in folder.samples.column_names:
        return None
    paths = folder.samples["image"]
    return lambda index, side: read_small_files([str(paths[place].as_py()) for place in index], side)


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
