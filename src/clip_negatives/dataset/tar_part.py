"""One webdataset tar: its pairs, its broken samples, and its damage."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from clip_negatives.dataset.archive import DAMAGED, files, grouped
from clip_negatives.dataset.captions import RawSample, contents, ending_of, json_fields, why_no_caption, with_caption
from clip_negatives.dataset.command import CommandError
from clip_negatives.dataset.images import AHEAD, ImageTooLargeError, count_pixels, limited_batches, read_image
from clip_negatives.dataset.notes import NO_GROUP, Note
from clip_negatives.dataset.pairs import BrokenSample, Sample, TornTar
from clip_negatives.dataset.urls import ShardStream, is_plain, open_url, shard_source, shard_stamp
from clip_negatives.dataset.values import MISSING
from clip_negatives.distributed.environment import reading_threads
from clip_negatives.storage.limits import OF_SAMPLES, limit
from clip_negatives.storage.safe_reading import parse_json
from clip_negatives.storage.source_files import SourceFile

EXTENSIONS = ("jpg", "png", "jpeg", "webp")  # image endings, in open_clip's order of preference
ENDINGS = (*EXTENSIONS, "txt", "json")  # endings of the files that are read


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
        with ThreadPoolExecutor(reading_threads()) as pool:
            for batch in limited_batches(self.raw_samples(), AHEAD, _count_pixels):
                yield from pool.map(self._decode, batch)

    def raw_samples(self) -> Iterator[RawSample | BrokenSample]:
        """Yield the samples; for a torn tar, the last item is a `TornTar`."""
        damage: list[TornTar] = []
        keys = set[str]()
        with open_url(self.name) as opened:
            for key, members in grouped(self._files(ShardStream(opened, self.name), damage)):
                sample = with_caption({"__key__": key, "__url__": self.name, **members}, self.text_field)
                if damage and not _is_pair(sample):  # cut sample: its other files are lost
                    continue
                yield self._checked(sample, is_cut=bool(damage), is_repeated=key in keys)
                keys.add(key)
        yield from damage

    def _files(self, stream: ShardStream, damage: list[TornTar]) -> Iterator[tuple[str, bytes | None]]:
        """Yield the files of the tar before any damage, so that the last complete sample is kept."""
        try:
            yield from files(stream, {*ENDINGS, ending_of(self.text_field)})
        except DAMAGED as error:
            cause = str(error) if isinstance(error, CommandError) else "it is torn or damaged"
            damage.append(self._torn(cause, stream.n_read))

    def _torn(self, cause: str, n_read: int) -> TornTar:
        """Return the record of a torn tar; `n_read` is the number of bytes before the damage."""
        size = Path(self.name).stat().st_size if is_plain(self.name) else None
        if size is None or not 0 < n_read < size:  # the full size of a cut tar is unknown
            return TornTar(self.name, cause, self.name)
        return TornTar(self.name, cause, self.name, share=n_read / size)

    def _checked(self, sample: RawSample, *, is_cut: bool, is_repeated: bool) -> RawSample | BrokenSample:
        """Check everything but the image.

        `is_cut`: the tar is damaged right after the files of this sample. `is_repeated`: an earlier sample has the same key.
        """
        key = sample["__key__"].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        fault = "the key is not UTF-8" if key != sample["__key__"] else self._fault(sample, is_cut)
        if fault is not None:
            return BrokenSample(key, fault, self.name)
        missing = "an earlier sample of the tar has the same key" if is_repeated else self._missing(sample)
        return sample if missing is None else BrokenSample(key, missing, self.name, is_lost=False)

    def _fault(self, sample: RawSample, is_cut: bool) -> str | None:
        """Return why the files of a sample cannot be used, None if they can."""
        if is_cut and self.group_field is not None and "json" not in sample:
            return "the tar is damaged before its .json"
        if too_large := next((ending for ending in ENDINGS if sample.get(ending, b"") is None), None):
            ending = ending_of(self.text_field) if too_large == "txt" else too_large
            return f"the .{ending} has more than {limit('member_bytes')} bytes"
        try:
            parse_json(sample.get("json", b"{}"))
        except ValueError:
            return "the .json cannot be read"
        try:
            text = sample.get("txt", b"").decode()
        except UnicodeDecodeError:
            return "the text is not UTF-8"
        if len(text) > limit("characters"):
            return f"the text has more than {limit('characters')} characters"
        return None

    def _missing(self, sample: RawSample) -> str | None:
        """Return what a sample lacks, None if it is a pair."""
        if _is_pair(sample):
            return None
        has_image = any(extension in sample for extension in EXTENSIONS)
        no_caption = () if "txt" in sample else (why_no_caption(sample, self.text_field),)
        return f"{' and '.join((*no_caption, *('no image',) * (not has_image)))}, only {contents(sample)}"

    def _decode(self, sample: RawSample | BrokenSample) -> Sample | BrokenSample:
        if isinstance(sample, BrokenSample):
            return sample
        key, group = sample["__key__"], group_of(sample, self.group_field)
        notes: tuple[Note, ...] = ()
        if group is None and self.group_field is not None:
            group, notes = "", (Note(NO_GROUP, group_detail(sample, self.group_field)),)
        try:
            image = read_image(image_file(sample), key)
        except ImageTooLargeError:
            return BrokenSample(key, "the image has too many pixels", self.name)
        except Exception:  # decoders raise undocumented errors, and open_clip skips the sample after any error
            return BrokenSample(key, "the image cannot be read", self.name)
        return Sample(key, sample["txt"].decode(), image, group=group, shard=self.name, notes=notes)


def _count_pixels(sample: RawSample | BrokenSample) -> int:
    return 0 if isinstance(sample, BrokenSample) else count_pixels(image_file(sample))


def _is_pair(sample: RawSample) -> bool:
    return "txt" in sample and any(extension in sample for extension in EXTENSIONS)


def image_file(sample: RawSample) -> io.BytesIO:
    """Return the image of a pair that is decoded by open_clip."""
    return io.BytesIO(next(sample[extension] for extension in EXTENSIONS if extension in sample))


def group_of(sample: RawSample, field: str | None) -> str | None:
    """Return the group of a sample, "" if the field is null; None if the sample has no ``.json`` with this field."""
    fields = {} if field is None else json_fields(sample)
    if field not in fields:
        return None
    group = fields[field]
    if group is None or group != group or str(group) in MISSING:  # JSON of Python can have NaN
        return ""
    return str(group).encode("utf-8", "backslashreplace").decode()  # JSON can escape text that is not valid UTF-8


def group_detail(sample: RawSample, field: str) -> str:
    """Return the group field that a sample lacks and what it has, for `clip_negatives.dataset.notes.no_groups`."""
    return f"{field!r} (the first has {contents(sample)})"
