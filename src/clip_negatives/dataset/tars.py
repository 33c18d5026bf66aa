"""Image-text pairs in webdataset tars."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from clip_negatives.dataset.captions import RawSample, remedy
from clip_negatives.dataset.images import file_size, read_image, read_small_image
from clip_negatives.dataset.notes import no_groups
from clip_negatives.dataset.pairs import BrokenSample, fingerprint_of, readable
from clip_negatives.dataset.tar_part import ENDINGS as ENDINGS
from clip_negatives.dataset.tar_part import TarPart, group_detail, group_of, image_file
from clip_negatives.dataset.urls import check_shards, expand_urls, is_plain
from clip_negatives.errors import DataError


class TarPairs:
    """Image-text pairs of webdataset tars, read as open_clip does: an image and a text with the same key.

    A pair is identified by its tar and its key: several tars may have the same keys. Data are read on first use. `keys`,
    `texts` and `groups` of all tars are in memory; `parts` are read one by one. Broken samples are skipped; a broken image is
    only noticed when it is read. `urls` are one or more tars joined by ``::``, with brace expansion: paths, URLs of fsspec, or
    ``pipe:``. Pairs of one group (a field of the ``.json``) show the same item. `text_field` is the ending or the json field of
    the text, see `clip_negatives.dataset.captions.with_caption`; None is the ``.txt``. With `may_lack_tars`, a missing tar is
    an error only when it is read.
    """

    n_pairs: int | None = None
    image_paths: Sequence[str] | None = None

    def __init__(
        self, urls: str, *, group_field: str | None = None, text_field: str | None = None, may_lack_tars: bool = False
    ) -> None:
        self.urls, self._group_field, self._text_field = urls, group_field, text_field
        self.shards = expand_urls(urls)
        if not may_lack_tars:
            check_shards(self.shards)

    @property
    def summary(self) -> str:
        """Return a line for the user: the number of tars and their addresses."""
        return f"Reading {len(self.shards):,} tar{'s' * (len(self.shards) != 1)} of {self.urls}"

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.keys)

    def parts(self) -> Sequence[TarPart]:
        """Return the tars."""
        return [TarPart(shard, self._group_field, self._text_field) for shard in self.shards]

    @property
    def keys(self) -> Sequence[str]:
        """Return the key of each pair, or raise DataError if the tars are not valid."""
        return self._columns[0]

    @property
    def shard_of(self) -> Sequence[str]:
        """Return the tar of each pair."""
        return self._columns[3]

    @property
    def texts(self) -> Sequence[str]:
        """Return the text of each pair."""
        return self._columns[1]

    @property
    def groups(self) -> Sequence[str] | None:
        """Return the group of each pair, or None without a group field."""
        return self._columns[2] if self._group_field else None

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Yield the images start .. stop-1, RGB; the DataError for an image that cannot be read names its key."""
        for sample in itertools.islice(self._samples([]), start, stop):
            yield read_image(image_file(sample), f"of sample {sample['__key__']}")

    def small_images(self, rows: Sequence[int], side: int) -> Iterator[Image.Image | None]:
        """Yield the images of `rows` (ascending), shrunk to fit a square of `side` pixels; None for one that cannot be read."""
        row_set = set(rows)
        for row, sample in enumerate(itertools.islice(self._samples([]), max(rows, default=-1) + 1)):
            if row in row_set:
                yield read_small_image(image_file(sample), side)

    def fingerprint(self) -> str:
        """Return a digest of name, size and modification time of each tar, and of the limits that leave samples out."""
        return fingerprint_of([part.digest() for part in self.parts()])

    def identity(self) -> dict[str, str]:
        """Return a digest of the tars, in order, and where their captions are.

        The digest is of the file name and size (None if missing) of a local tar, and of the URL of a remote one.
        """
        tars = [f"{Path(tar).name} {file_size(tar)}" if is_plain(tar) else tar for tar in self.shards]
        return {"tars": fingerprint_of(tars), "captions": self._text_field or "txt"}

    @functools.cached_property
    def _columns(self) -> tuple[list[str], list[str], list[str], list[str]]:
        keys, texts, groups, shards = [], [], [], []
        broken: list[BrokenSample] = []
        first: RawSample = {}
        any_group = False
        for sample in self._samples(broken):
            first = first or sample
            group = group_of(sample, self._group_field)
            any_group |= group is not None
            keys.append(sample["__key__"])
            texts.append(sample["txt"].decode())
            groups.append(group or "")
            shards.append(sample["__url__"])
        if not keys:
            hint = f" ({broken[0].key}: {broken[0].reason})" if broken else ""
            repair = remedy(broken[0].reason if broken else "")
            raise DataError(f"{self.urls} has no sample with an image and a valid text{hint}. {repair}")
        if self._group_field is not None and not any_group:
            raise no_groups(group_detail(first, self._group_field))
        return keys, texts, groups, shards

    def _samples(self, broken: list[BrokenSample]) -> Iterator[RawSample]:
        return readable(itertools.chain.from_iterable(part.raw_samples() for part in self.parts()), broken)
