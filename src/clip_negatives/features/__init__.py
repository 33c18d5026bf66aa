"""Encode a data set once, part by part, on any number of processes, so that being interrupted loses no part that is done.

A folder beside the output keeps, of each part, its samples and features; a last step puts them together.
"""

from __future__ import annotations

from pathlib import Path

from clip_negatives.dataset import PairSource
from clip_negatives.encoders import Encoder
from clip_negatives.errors import InputError
from clip_negatives.features.run import DTYPES, Encoded, Encoding
from clip_negatives.processes import ALONE, Processes

__all__ = ["Encoded", "encode"]


def encode(
    source: PairSource,
    image_encoder: Encoder,
    text_encoder: Encoder,
    folder: Path,
    *,
    dtype: str = "float32",
    progress: bool = True,
    processes: Processes = ALONE,
) -> Encoded:
    """Encode images and texts of every pair that is not broken.

    Each part of the source is encoded by one process and written to `folder` once; a second call, with the same encoders
    and on any number of processes, goes on with the parts that are not there yet, and gives the very features that one
    call on one process gives. Memory holds one part, and what encoders learn from: up to 200,000 texts and 40,000 raw
    features of images, evenly spaced over the data (all of them where there are fewer than 100,000 and 20,000).

    A feature that is the zero vector (a text without a known piece of a word) stays zero: it is similar to nothing.

    Args:
        source: the data.
        image_encoder: encoder of the images.
        text_encoder: encoder of the texts.
        folder: where parts are kept, on a disk that all processes see; parts of other data or encoders go. One run at a time.
        dtype: "float32" or "float16".
        progress: show a progress bar on stderr where that is a terminal, on rank 0.
        processes: those that share the work; each makes this call.

    Raises:
        DataError: the data cannot be read, changed meanwhile, have a key twice, or no sample that can be read.
        InputError: there is no such dtype.
        ArtifactError: the folder cannot be written.
        ProcessError: a process was lost.
    """
    if dtype not in DTYPES:
        raise InputError(f"Expected features of one of {', '.join(DTYPES)}, got {dtype!r}.")
    return Encoding(source, image_encoder, text_encoder, folder, dtype, processes).run(progress)
