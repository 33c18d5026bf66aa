"""Notes of `prepare` on samples that are used: unknown groups, and images that look different in open_clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

from PIL import Image

from clip_negatives.dataset.columns import argument_of
from clip_negatives.errors import DataError

DEEP, TRANSPARENT, TURNED, NO_GROUP = "deep", "transparent", "turned", "no group"

SENTENCES = {
    DEEP: "have more than 8 bits per channel (first: {first}). open_clip makes most of their pixels white or black.",
    TRANSPARENT: "have transparent pixels (first: {first}). open_clip shows the color that is stored under them, often black.",
    TURNED: "have an EXIF orientation (first: {first}). open_clip ignores it, so they are turned or mirrored.",
    NO_GROUP: "have no .json with the group field (first: {first}). Their group is unknown.",
}

KEY = "clip-negatives"  # entry of `PIL.Image.Image.info` with the kinds of notes
ORIENTATION = 274  # tag of EXIF
MIN_SHARE = 0.01  # least share of transparent pixels

Summary = dict[str, list[Any]]  # by kind: number of samples, name of the first one, and its detail


class Note(NamedTuple):
    """A fact about one sample, of a kind of `SENTENCES`."""

    kind: str
    detail: str = ""


def image_kinds(image: Image.Image) -> tuple[str, ...]:
    """Return the kinds of notes of a decoded image. Decoding applies the orientation of a TIFF, so it gets no note."""
    checks = {DEEP: _is_deep, TRANSPARENT: _is_transparent, TURNED: _is_turned}
    return tuple(kind for kind, applies in checks.items() if _holds(applies, image))


def image_notes(image: Image.Image) -> list[Note]:
    """Return the notes of an image that `clip_negatives.dataset.images.read_image` returned."""
    return [Note(kind) for kind in image.info.get(KEY, ())]


def count(notes: Iterable[Note], name: str, summary: Summary) -> None:
    """Add the notes of the sample `name` to a summary."""
    for note in notes:
        summary.setdefault(note.kind, [0, name, note.detail])[0] += 1


def merged(summaries: Iterable[Mapping[str, list[Any]]]) -> Summary:
    """Return the summary of several parts, in order."""
    total: Summary = {}
    for kind, (number, name, detail) in (item for summary in summaries for item in summary.items()):
        total.setdefault(kind, [0, name, detail])[0] += number
    return total


def sentences(summary: Mapping[str, list[Any]], n: int) -> list[str]:
    """Return a sentence for each kind of note; `n` is the number of samples."""
    facts = []
    for kind, sentence in SENTENCES.items():
        if kind in summary:
            number, name, _ = summary[kind]
            facts.append(f"{number} of {n} {'samples' if kind == NO_GROUP else 'images'} {sentence.format(first=name)}")
    return facts


def no_groups(detail: str) -> DataError:
    """Return the error for tars without any group; `detail` comes from a note of the kind `NO_GROUP`."""
    fault = f"No sample has a .json with the field {detail}"
    return DataError(f"{fault}. Name another field with {argument_of('group')}, or omit it.")


def all_lack_groups(summary: Mapping[str, list[Any]], n: int) -> bool:
    """Return whether all of n samples lack the group field."""
    return n > 0 and summary.get(NO_GROUP, [0])[0] == n


def check_groups(summary: Mapping[str, list[Any]], n: int) -> None:
    """Raise DataError if all of n samples lack the group field."""
    if all_lack_groups(summary, n):
        raise no_groups(summary[NO_GROUP][2])


def _holds(check: Callable[[Image.Image], bool], image: Image.Image) -> bool:
    try:
        return check(image)
    except Exception:  # undocumented errors of Pillow, such as for damaged EXIF data: the image itself can be read
        return False


def _is_deep(image: Image.Image) -> bool:
    if image.mode != "F" and not image.mode.startswith("I"):
        return False
    if image.mode not in ("F", "I", "I;16"):  # Pillow has no extrema of other modes
        image = image.convert("I")
    low, high = cast("tuple[float, float]", image.getextrema())
    return low < 0 or high > 255 or (image.mode == "F" and high <= 1)


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    if image.mode not in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
    hidden = sum(image.getchannel("A").histogram()[:128])
    return hidden > MIN_SHARE * image.width * image.height


def _is_turned(image: Image.Image) -> bool:
    return "exif" in image.info and image.getexif().get(ORIENTATION, 1) not in (0, 1)
