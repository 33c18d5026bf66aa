"""Image-text pairs in webdataset tars."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clip_negatives.dataset.archive import DAMAGED, files, grouped
from clip_negatives.dataset.captions import RawSample, contents, ending_of, remedy, why_no_caption, with_caption
from clip_negatives.dataset.columns import argument_of
from clip_negatives.dataset.images import AHEAD, ImageTooLargeError, count_pixels, limited_batches, read_image, read_small_image
from clip_negatives.dataset.pairs import BrokenSample, Sample, fingerprint_of, readable
from clip_negatives.dataset.urls import (
    ShardStream,
    check_shards,
    expand_urls,
    is_plain,
    open_url,
    shard_source,
    shard_stamp,
    unreadable,
)
from clip_negatives.errors import DataError
from clip_negatives.storage.limits import OF_SAMPLES, limit
from clip_negatives.storage.safe_reading import parse_json
from clip_negatives.storage.source_files import SourceFile

EXTENSIONS = ("jpg", "png", "jpeg", "webp")  # image endings, in open_clip's order of preference
ENDINGS = (*EXTENSIONS, "txt", "json")  # endings of the files that are read


class TarPairs:
    """Image-text pairs of webdataset tars, read as open_clip does: an image and a text with the same key.

    A pair is identified by its tar and its key: several tars may have the same keys. Data are read on first use. `keys`,
    `texts` and `groups` of all tars are in memory; `parts` are read one by one. Broken samples are skipped; a broken image is
    only noticed when it is read. `urls` are one or more tars joined by ``::``, with brace expansion: paths, URLs of fsspec, or
    ``pipe:``. Pairs of one group (a field of the ``.json``) show the same item. `text_field` is the ending or the json field of
    the text, see `clip_negatives.dataset.captions.with_caption`; None is the ``.txt``.
    """

    n_pairs: int | None = None
    image_paths: Sequence[str] | None = None

    def __init__(self, urls: str, *, group_field: str | None = None, text_field: str | None = None) -> None:
        self.urls, self._group_field, self._text_field = urls, group_field, text_field
        self.shards = expand_urls(urls)
        check_shards(self.shards)

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
            yield read_image(_image_file(sample), f"of sample {sample['__key__']}")

    def small_images(self, rows: Sequence[int], side: int) -> Iterator[Image.Image | None]:
        """Yield the images of `rows` (ascending), shrunk to fit a square of `side` pixels; None for one that cannot be read."""
        row_set = set(rows)
        for row, sample in enumerate(itertools.islice(self._samples([]), max(rows, default=-1) + 1)):
            if row in row_set:
                yield read_small_image(_image_file(sample), side)

    def fingerprint(self) -> str:
        """Return a digest of name, size and modification time of each tar, and of the limits that leave samples out."""
        return fingerprint_of([part.digest() for part in self.parts()])

    def identity(self) -> dict[str, str]:
        """Return a digest of the tars, in order: the file name and size of a local tar, the URL of a remote one."""
        tars = [f"{Path(tar).name} {Path(tar).stat().st_size}" if is_plain(tar) else tar for tar in self.shards]
        return {"tars": fingerprint_of(tars)}

    @functools.cached_property
    def _columns(self) -> tuple[list[str], list[str], list[str], list[str]]:
        keys, texts, groups, shards = [], [], [], []
        broken: list[BrokenSample] = []
        for sample in self._samples(broken):
            keys.append(sample["__key__"])
            texts.append(sample["txt"].decode())
            groups.append("" if self._group_field is None else _group(sample, self._group_field))
            shards.append(sample["__url__"])
        if not keys:
            hint = f" ({broken[0].key}: {broken[0].reason})" if broken else ""
            repair = remedy(broken[0].reason if broken else "")
            raise DataError(f"{self.urls} has no sample with an image and a valid text{hint}. {repair}")
        return keys, texts, groups, shards

    def _samples(self, broken: list[BrokenSample]) -> Iterator[RawSample]:
        return readable(itertools.chain.from_iterable(part.raw_samples() for part in self.parts()), broken)


@dataclass(frozen=True, slots=True)
class TarPart:
    """A tar; see `clip_negatives.dataset.pairs.Part`. Samples that open_clip skips with a warning are broken samples here."""

    name: str
    group_field: str | None
    text_field: str | None = None

    def digest(self) -> str:
        """Return a digest of name, size, modification time, and the limits that leave samples out."""
        limits = [limit(name) for name in OF_SAMPLES]
        return hashlib.sha256(
            f"{self.group_field}\0{self.text_field}\0{self.name}\0{limits}\0".encode() + shard_stamp(self.name)
        ).hexdigest()

    def source_files(self) -> list[SourceFile]:
        """Return size and digest of the tar."""
        return [shard_source(self.name)]

    def samples(self) -> Iterator[Sample | BrokenSample]:
        """Read the pairs; threads decode the images."""
        with ThreadPoolExecutor() as pool:
            for batch in limited_batches(self.raw_samples(), AHEAD, _count_pixels):
                yield from pool.map(self._decode, batch)

    def raw_samples(self) -> Iterator[RawSample | BrokenSample]:
        """Yield the samples; for a damaged tar, the last item is a broken sample for the tar."""
        damage: list[BrokenSample] = []
        keys, has_json = set[str](), False
        try:
            with open_url(self.name) as stream:
                for key, members in grouped(self._files(ShardStream(stream, self.name), damage)):
                    sample = with_caption({"__key__": key, "__url__": self.name, **members}, self.text_field)
                    has_json |= "json" in sample
                    if damage and not _is_pair(sample):  # its other files are lost with the rest of the tar
                        continue
                    yield self._checked(sample, is_cut=bool(damage), is_repeated=key in keys)
                    keys.add(key)
        except OSError as error:
            raise unreadable("tar", self.name, error) from error
        if keys and not has_json and self.group_field is not None:
            raise DataError(f"No sample of {self.name} has a .json with groups. Omit {argument_of('group')}.")
        yield from damage

    def _files(self, stream: ShardStream, damage: list[BrokenSample]) -> Iterator[tuple[str, bytes | None]]:
        """Yield the files of the tar before any damage, so that the last complete sample is kept."""
        try:
            yield from files(stream, {*ENDINGS, ending_of(self.text_field)})
        except DAMAGED:
            damage.append(BrokenSample(self.name, "the tar is damaged; the samples before the damage are used", self.name))

    def _checked(self, sample: RawSample, *, is_cut: bool, is_repeated: bool) -> RawSample | BrokenSample:
        """Check everything but the image.

        `is_cut`: the tar is damaged right after the files of this sample. `is_repeated`: an earlier sample has the same key.
        """
        key = sample["__key__"].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        fault = "the key is not UTF-8" if key != sample["__key__"] else self._fault(sample, is_cut)
        if fault is None and is_repeated:
            fault = "an earlier sample of the tar has the same key"
        return sample if fault is None else BrokenSample(key, fault, self.name)

    def _fault(self, sample: RawSample, is_cut: bool) -> str | None:
        """Return why a sample cannot be used, None if it can."""
        if is_cut and self.group_field is not None and "json" not in sample:
            return "the tar is damaged before its .json"
        if too_large := next((ending for ending in ENDINGS if sample.get(ending, b"") is None), None):
            ending = ending_of(self.text_field) if too_large == "txt" else too_large
            return f"the .{ending} has more than {limit('member_bytes')} bytes"
        try:
            parse_json(sample.get("json", b"{}"))
        except ValueError:
            return "the .json cannot be read"
        if not _is_pair(sample):
            has_image = any(extension in sample for extension in EXTENSIONS)
            no_caption = () if "txt" in sample else (why_no_caption(sample, self.text_field),)
            missing = " and ".join((*no_caption, *("no image",) * (not has_image)))
            return f"{missing}, only {contents(sample)}"
        try:
            text = sample["txt"].decode()
        except UnicodeDecodeError:
            return "the text is not UTF-8"
        if len(text) > limit("characters"):
            return f"the text has more than {limit('characters')} characters"
        return None

    def _decode(self, sample: RawSample | BrokenSample) -> Sample | BrokenSample:
        if isinstance(sample, BrokenSample):
            return sample
        key = sample["__key__"]
        group = _group(sample, self.group_field) if self.group_field is not None else None
        try:
            return Sample(key, sample["txt"].decode(), read_image(_image_file(sample), key), group=group, shard=self.name)
        except ImageTooLargeError:
            return BrokenSample(key, "the image has too many pixels", self.name)
        except Exception:  # decoders raise undocumented errors, and open_clip skips the sample after any error
            return BrokenSample(key, "the image cannot be read", self.name)


def _count_pixels(sample: RawSample | BrokenSample) -> int:
    return 0 if isinstance(sample, BrokenSample) else count_pixels(_image_file(sample))


def _is_pair(sample: RawSample) -> bool:
    return "txt" in sample and any(extension in sample for extension in EXTENSIONS)


def _image_file(sample: RawSample) -> io.BytesIO:
    return io.BytesIO(next(sample[extension] for extension in EXTENSIONS if extension in sample))


def _group(sample: RawSample, field: str) -> str:
    """Return the group of a sample: "" if it is unknown, because the field is null or the sample has no .json."""
    if "json" not in sample:
        return ""
    try:
        group = parse_json(sample["json"])[field]
    except (ValueError, KeyError, TypeError, RecursionError):
        fault = f"The .json of sample {sample['__key__']} has no field {field!r}"
        raise DataError(f"{fault}. Name another field with {argument_of('group')}, or omit it.") from None
    if group is None or group != group:  # JSON of Python can have NaN
        return ""
    return str(group).encode("utf-8", "backslashreplace").decode()  # JSON can escape text that is not valid UTF-8
