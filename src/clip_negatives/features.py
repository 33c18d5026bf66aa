"""Encode a data set once, in chunks that survive being interrupted."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_negatives.atomic import replaced_file
from clip_negatives.dataset import PairSource
from clip_negatives.encoders import Encoder

CHUNK = 512
"""Samples that are encoded between two writes; what an interruption loses at most."""


def encode(
    source: PairSource, image_encoder: Encoder, text_encoder: Encoder, folder: Path, *, progress: bool = True
) -> tuple[Tensor, Tensor]:
    """Return image and text features of every pair.

    Chunks are written to `folder` as they are made; a second call with the same data and encoders goes on after the last one.
    A feature that is the zero vector (a text without a known word) stays zero: it is similar to nothing.

    Args:
        source: the data.
        image_encoder: encoder of the images.
        text_encoder: encoder of the texts.
        folder: where chunks are kept; emptied if they are of other data or encoders.
        progress: show a progress bar on stderr.

    Returns:
        Two tensors, float32, unit norm, shapes (N, D_image) and (N, D_text).

    Raises:
        DataError: an image cannot be read.
        ArtifactError: the folder cannot be written.
    """
    _claim(folder, {"data": source.fingerprint(), "image": image_encoder.name, "text": text_encoder.name, "chunk": CHUNK})
    n = len(source.keys)
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        image = _encode(
            image_encoder, lambda start: source.images(start, n), n, folder / "image", _tick(bar, "Encoding images", n)
        )
        if text_encoder.learn is not None:
            text_encoder.learn(source.texts)
        text = _encode(
            text_encoder, lambda start: source.texts[start:], n, folder / "text", _tick(bar, "Encoding texts", n)
        )
    return image, text


def _encode(
    encoder: Encoder, samples: Callable[[int], Iterable[Any]], n: int, folder: Path, tick: Callable[[int], None]
) -> Tensor:
    """Encode what has no chunk yet and return all of it, finished and at unit norm."""
    folder.mkdir(exist_ok=True)
    parts: list[Tensor] = []
    while (part := _read(folder / f"{len(parts):06d}.safetensors")) is not None:
        parts.append(part)
    done = sum(map(len, parts))
    tick(done)
    for batch in _chunks(samples(done) if done < n else ()):
        encoded = encoder.encode(batch).float().contiguous()
        with replaced_file(folder / f"{len(parts):06d}.safetensors") as file:
            save_file({"features": encoded}, file)
        parts.append(encoded)
        tick(len(batch))
    raw = torch.cat(parts)
    return F.normalize(raw if encoder.finish is None else encoder.finish(raw), dim=1)


def _chunks(samples: Iterable[Any]) -> Iterator[Sequence[Any]]:
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, CHUNK)):
        yield batch


def _read(file: Path) -> Tensor | None:
    """Return a chunk, or None where there is none or it is damaged, which makes it be encoded again."""
    try:
        return load_file(file)["features"]
    except (OSError, SafetensorError, KeyError):
        return None


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder ready for chunks of `plan`; chunks of another plan go."""
    file = folder / "plan.json"
    if folder.exists() and (not file.exists() or file.read_text() != json.dumps(plan)):
        shutil.rmtree(folder)
    with replaced_file(file) as partial:
        partial.write_text(json.dumps(plan))


def _tick(bar: Progress, what: str, n: int) -> Callable[[int], None]:
    task = bar.add_task(what, total=n)
    return lambda count: bar.advance(task, count)
