"""Pairs in webdataset tars."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image
from webdataset.tariterators import group_by_keys

from clip_negatives.dataset.archive import files
from clip_negatives.dataset.source import (
    AHEAD,
    Broken,
    Sample,
    TooLargeError,
    fingerprint_of,
    in_turn,
    pixels_of,
    read_image,
    read_small_image,
)
from clip_negatives.dataset.urls import Reads, check_shards, expand_urls, open_url, stamp_of, unreadable
from clip_negatives.errors import DataError
from clip_negatives.limits import limit
from clip_negatives.reading import parse_json

EXTENSIONS = ("jpg", "png", "jpeg", "webp")
"""Of images, in the order in which open_clip looks for them."""

WANTED = (*EXTENSIONS, "txt", "json")
"""Endings of the files that are read; others that a sample has are passed over."""

TORN = (tarfile.TarError, EOFError, zlib.error)
"""What is raised where a tar is damaged; an OSError says that it cannot be reached, which may pass."""


class TarPairs:
    """Read pairs from webdataset tars as open_clip does: image and ``.txt`` of one key.

    Nothing is read before it is asked for. `keys`, `texts` and `groups` are those of all tars, in memory; `parts` are
    read one by one. What is broken is left out, but for images: those are known to be when they are asked for.

    Args:
        urls: one or more tars, with brace expansion, joined by ``::``: paths, URLs that fsspec knows, or ``pipe:``.
        group_field: field of the ``.json`` of a pair that says which pairs show the same; None if there is none.

    Raises:
        DataError: a tar is missing.
    """

    n_pairs: int | None = None
    image_paths: Sequence[str] | None = None

    def __init__(self, urls: str, *, group_field: str | None = None) -> None:
        self.urls, self._group_field = urls, group_field
        self.shards = expand_urls(urls)
        check_shards(self.shards)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.keys)

    def parts(self) -> Sequence[TarPart]:
        """Return the tars."""
        return [TarPart(shard, self._group_field) for shard in self.shards]

    @property
    def keys(self) -> Sequence[str]:
        """Return the key of each pair.

        Raises:
            DataError: a tar cannot be read, a group is missing, a key repeats, or there is no pair.
        """
        return self._columns[0]

    @property
    def texts(self) -> Sequence[str]:
        """Return the text of each pair; raises as `keys`."""
        return self._columns[1]

    @property
    def groups(self) -> Sequence[str] | None:
        """Return what each pair shows, or None where no field says it; raises as `keys`."""
        return self._columns[2] if self._group_field else None

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Yield the images start .. stop-1 in RGB, in the order of the tars.

        Raises:
            DataError: an image cannot be read; the message names its key.
        """
        for sample in itertools.islice(self._samples(), start, stop):
            yield read_image(_image_file(sample), f"the sample {sample['__key__']}")

    def small_images(self, index: Sequence[int], side: int) -> Iterator[Image.Image | None]:
        """Yield the images of some samples, to fit a square of `side` pixels; None for one that cannot be read.

        Args:
            index: places, ascending: the tars are read once, up to the last of them.
            side: pixels.
        """
        wanted = set(index)
        for place, sample in enumerate(itertools.islice(self._samples(), max(index, default=-1) + 1)):
            if place in wanted:
                yield read_small_image(_image_file(sample), side)

    def fingerprint(self) -> str:
        """Return a digest of the name, size and time of change of each tar."""
        return fingerprint_of([part.digest() for part in self.parts()])

    @functools.cached_property
    def _columns(self) -> tuple[list[str], list[str], list[str]]:
        keys, texts, groups = [], [], []
        faults: list[Broken] = []
        for sample in self._samples(faults):
            keys.append(sample["__key__"])
            texts.append(sample["txt"].decode())
            groups.append(_group(sample, self._group_field))
        if not keys:
            hint = f" ({faults[0].key}: {faults[0].reason})" if faults else ""
            raise DataError(f"Expected readable tars with pairs of an image and a .txt, got none in {self.urls}{hint}.")
        if repeated := len(keys) - len(set(keys)):
            raise DataError(f"Expected every key once in {self.urls}, got {repeated} again. Rename the samples.")
        return keys, texts, groups

    def _samples(self, faults: list[Broken] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the samples of all tars, undecoded; those whose text or ``.json`` is broken go to `faults`."""
        for part in self.parts():
            for sample in part.members():
                broken = sample if isinstance(sample, Broken) else _fault(sample)
                if broken is None:
                    yield sample  # type: ignore[misc]  # it is none that is broken
                elif faults is not None:
                    faults.append(broken)


@dataclass(frozen=True, slots=True)
class TarPart:
    """A tar; see `clip_negatives.dataset.source.Part`.

    What open_clip leaves out of training with a warning is left out here too and said: a sample whose image, text or
    ``.json`` cannot be decoded, and what would follow where the tar is damaged.
    """

    name: str
    group_field: str | None

    def digest(self) -> str:
        """Return a digest of name, size and time of change."""
        return hashlib.sha256(f"{self.group_field}\0{self.name}\0".encode() + stamp_of(self.name)).hexdigest()

    def samples(self) -> Iterator[Sample | Broken]:
        """Read the pairs, some of them decoded at once by threads.

        Raises:
            DataError: the tar is not there or cannot be read on, or a pair lacks the group field.
        """
        with ThreadPoolExecutor() as pool:
            for some in in_turn(self.members(), AHEAD, _pixels):
                yield from pool.map(self._decoded, some)

    def members(self) -> Iterator[dict[str, Any] | Broken]:
        """Yield the samples that have a text and an image, undecoded, and at the end what the tar is broken by.

        Raises:
            DataError: the tar is not there or cannot be read on, or has two files of one name in a sample.
        """
        faults: list[Broken] = []
        try:
            with open_url(self.name) as stream:
                for sample in group_by_keys(self._files(Reads(stream, self.name), faults)):
                    if "txt" in sample and any(extension in sample for extension in EXTENSIONS):
                        sample["__key__"], known = printable(sample["__key__"]), sample["__key__"]
                        if sample["__key__"] != known:
                            yield Broken(sample["__key__"], "the name is not UTF-8")
                            continue
                        # The last one before a tear may have lost what would follow.
                        lost = bool(faults) and self.group_field is not None and "json" not in sample
                        yield Broken(str(sample["__key__"]), "the tar is damaged before its .json") if lost else sample
        except ValueError as error:  # two files of one name
            raise DataError(f"Expected readable tars, got an error: {error.args[0]}. Write the shard again.") from error
        except OSError as error:
            raise unreadable("tar", self.name, error) from error
        yield from faults

    def _files(self, stream: Reads, faults: list[Broken]) -> Iterator[dict[str, Any]]:
        """Yield the files of the tar; where it is torn, say so and end, so that the sample at hand is still whole."""
        try:
            for name, content in files(stream, WANTED):
                yield {"fname": name, "data": content, "__url__": self.name}
        except TORN:
            faults.append(Broken(self.name, "the tar is damaged; what stands before is taken"))

    def _decoded(self, sample: dict[str, Any] | Broken) -> Sample | Broken:
        if isinstance(sample, Broken):
            return sample
        if (broken := _fault(sample)) is not None:
            return broken
        key = str(sample["__key__"])
        group = _group(sample, self.group_field) if self.group_field is not None else None
        try:
            image = read_image(_image_file(sample), f"the sample {key}")
            return Sample(key, sample["txt"].decode(), image, group=group, shard=self.name)
        except TooLargeError:
            return Broken(key, "the image has too many pixels")
        except Exception:  # Decoders raise what they like at damaged files, and open_clip leaves out the sample at any of it.
            return Broken(key, "the image cannot be read")


def _pixels(sample: dict[str, Any] | Broken) -> int:
    return 0 if isinstance(sample, Broken) or _fault(sample) is not None else pixels_of(_image_file(sample))


def _image_file(sample: dict[str, Any]) -> io.BytesIO:
    return io.BytesIO(next(sample[extension] for extension in EXTENSIONS if extension in sample))


def _group(sample: dict[str, Any], field: str | None) -> str:
    if field is None:
        return ""
    try:
        group = str(parse_json(sample.get("json", b"{}"))[field])
        return group.encode("utf-8", "backslashreplace").decode()  # JSON can say what no text may hold
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(
            f"Expected the field {field!r} in the .json of each sample, got none in {sample['__key__']}. "
            "Name another --group-column or none."
        ) from None


def _fault(sample: dict[str, Any]) -> Broken | None:
    """Return what a sample is broken by, its image apart."""
    key = str(sample["__key__"])
    too_large = next((ending for ending in WANTED if ending in sample and sample[ending] is None), None)
    if too_large is not None:
        return Broken(key, f"the .{too_large} has more than {limit('member_bytes')} bytes")
    try:
        text = sample["txt"].decode()
    except UnicodeDecodeError:
        return Broken(key, "the text is not UTF-8")
    if len(text) > limit("letters"):
        return Broken(key, f"the text has {len(text)} letters, more than {limit('letters')}")
    try:
        parse_json(sample.get("json", b"{}"))
    except ValueError:
        return Broken(key, "the .json cannot be read")
    return None


def printable(name: str) -> str:
    """Return a name with what is not UTF-8 in it, where a tar has such, as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
