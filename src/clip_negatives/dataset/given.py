"""Locations of precomputed features: the value of ``--features``."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from clip_negatives.advice import argument
from clip_negatives.dataset.formats import natural
from clip_negatives.dataset.urls import check_local_file, is_plain
from clip_negatives.errors import DataError

COLUMNS = "columns:"
FOLDERS = {"image": "img_emb/img_emb_*.npy", "text": "text_emb/text_emb_*.npy"}  # of clip-retrieval
FORMS = "a folder of clip-retrieval, IMAGES.npy,TEXTS.npy or columns:IMAGE,TEXT"

Place = str | tuple[str, ...]  # a column, or files


@dataclass(frozen=True, slots=True)
class FeaturePlaces:
    """Column or files with the features of the images and of the texts; None for a side without precomputed features."""

    image: Place | None
    text: Place | None


def feature_places(spec: str | Path) -> FeaturePlaces:
    """Return the columns or files that a value of ``--features`` names.

    Args:
        spec: a folder that clip-retrieval wrote; or ``IMAGES.npy,TEXTS.npy``, each a file or, with ``*``, the parts of one in
            the order of their numbers; or ``columns:IMAGE,TEXT``. One of the two may be empty.

    Raises:
        DataError: the spec has another form, or a file is missing.
    """
    spec = str(spec)
    if spec.startswith(COLUMNS):
        return FeaturePlaces(*(column or None for column in _pair(spec.removeprefix(COLUMNS), spec)))
    if Path(spec).is_dir():
        files = {side: _sorted(str(Path(glob.escape(spec)) / pattern)) for side, pattern in FOLDERS.items()}
        if not any(files.values()):
            raise DataError(f"{spec} has neither {' nor '.join(FOLDERS.values())}. Name {FORMS} with {argument('features')}.")
        return FeaturePlaces(files["image"] or None, files["text"] or None)
    image, text = (_files(pattern) if pattern else None for pattern in _pair(spec, spec))
    return FeaturePlaces(image, text)


def _pair(names: str, spec: str) -> tuple[str, str]:
    image, _, text = (part.strip() for part in names.partition(","))
    if "," in text or not (image or text):
        raise DataError(f"{argument('features')} must be {FORMS}, got {spec!r}.")
    return image, text


def _files(pattern: str) -> tuple[str, ...]:
    if not is_plain(pattern):
        if glob.has_magic(pattern) or not pattern.endswith(".npy"):
            fault = f"{pattern} names no npy file: at a URL, {argument('features')} takes no * and no folder"
            raise DataError(f"{fault}. Name one file that ends in .npy, or copy the files to a disk.")
        return (pattern,)
    if not pattern.endswith(".npy"):
        fault = "does not exist" if not Path(pattern).exists() else "is neither a folder nor an .npy file"
        raise DataError(f"{pattern} {fault}. {argument('features')} must be {FORMS}.")
    files = (pattern,) if Path(pattern).exists() or not glob.has_magic(pattern) else _sorted(pattern)
    if not files:
        raise DataError(f"No file matches {pattern}. Correct {argument('features')}.")
    for file in files:
        check_local_file("npy file", file)
    return files


def _sorted(pattern: str) -> tuple[str, ...]:
    return tuple(sorted(glob.glob(pattern), key=natural))  # noqa: PTH207  (the pattern may be absolute)
