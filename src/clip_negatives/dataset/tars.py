"""Pairs in webdataset tars."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import braceexpand
import webdataset as wds
from PIL import Image

from clip_negatives.dataset.source import read_image, read_small_image, stamp
from clip_negatives.errors import DataError


class TarPairs:
    """Read pairs from webdataset tars as open_clip does: image and ``.txt`` of one key.

    Args:
        urls: one or more local tars, with brace expansion, joined by ``::``.
        group_field: field of the ``.json`` of a pair that says which pairs show the same; None if there is none.

    Raises:
        DataError: a tar is missing or damaged, a key repeats, or there is no pair.
    """

    EXTENSIONS = ("jpg", "png", "jpeg", "webp")

    def __init__(self, urls: str, *, group_field: str | None = None) -> None:
        self.shards = [shard for part in urls.split("::") for shard in braceexpand.braceexpand(part)]
        for shard in self.shards:
            if not Path(shard).is_file():
                raise DataError(f"Expected a tar file, got {shard}, which is not there. Name local tars.")
        self._group_field = group_field
        self.image_paths: Sequence[str] | None = None
        keys, texts, groups = [], [], []
        for sample in self._samples():
            keys.append(sample["__key__"])
            texts.append(_text(sample))
            groups.append(self._group(sample))
        if not keys:
            raise DataError(f"Expected pairs of an image and a .txt in {urls}, got none.")
        if len(set(keys)) < len(keys):
            raise DataError(f"Expected every key once in {urls}, got {len(keys) - len(set(keys))} again. Rename the samples.")
        self.keys: Sequence[str] = keys
        self.texts: Sequence[str] = texts
        self.groups: Sequence[str] | None = groups if group_field else None

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.keys)

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Yield the images start .. stop-1 in RGB, in the order of the tars.

        Raises:
            DataError: an image cannot be read; the message names its key.
        """
        for sample in itertools.islice(self._samples(), start, stop):
            yield read_image(self._image_file(sample), f"the sample {sample['__key__']}")

    def small_images(self, index: Sequence[int], side: int) -> Iterator[Image.Image | None]:
        """Yield the images of some samples, to fit a square of `side` pixels; None for one that cannot be read.

        Args:
            index: places, ascending: the tars are read once, up to the last of them.
            side: pixels.
        """
        wanted = set(index)
        for place, sample in enumerate(itertools.islice(self._samples(), max(index, default=-1) + 1)):
            if place in wanted:
                yield read_small_image(self._image_file(sample), side)

    def fingerprint(self) -> str:
        """Return a digest of the name, size and time of change of each tar."""
        whole = hashlib.sha256(str(self._group_field).encode())
        for shard in self.shards:
            whole.update(shard.encode() + b"\0" + stamp(shard))
        return whole.hexdigest()

    def _image_file(self, sample: dict[str, Any]) -> io.BytesIO:
        return io.BytesIO(next(sample[extension] for extension in self.EXTENSIONS if extension in sample))

    def _samples(self) -> Iterator[dict[str, Any]]:
        """Yield the samples that open_clip keeps: those with a text and an image."""
        stages = wds.DataPipeline(wds.SimpleShardList(self.shards), wds.tarfile_to_samples())
        try:
            for sample in stages:
                if "txt" in sample and any(extension in sample for extension in self.EXTENSIONS):
                    yield sample
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            reason = " ".join(str(error.args[0] if error.args else error).split())
            raise DataError(f"Expected readable tars, got an error: {reason}. Write the shard again.") from error

    def _group(self, sample: dict[str, Any]) -> str:
        if self._group_field is None:
            return ""
        try:
            return str(json.loads(sample.get("json", b"{}"))[self._group_field])
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"Expected the field {self._group_field!r} in the .json of each sample, got none in "
                f"{sample['__key__']}. Name another --group-column or none."
            ) from None


def _text(sample: dict[str, Any]) -> str:
    try:
        return str(sample["txt"].decode())
    except UnicodeDecodeError:
        raise DataError(
            f"Expected texts in UTF-8, got others in the sample {sample['__key__']}. Write the shard again."
        ) from None
