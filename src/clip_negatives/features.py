"""Encode a data set once, in chunks that survive being interrupted."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress, TaskID
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_negatives import __version__
from clip_negatives.atomic import replaced_file, write_tensors
from clip_negatives.dataset import PairSource
from clip_negatives.encoders import Encoder
from clip_negatives.errors import DataError

CHUNK = 512
"""Samples that are encoded between two writes; what an interruption loses at most."""

FITTED_ON = 20_000
"""Samples, evenly spaced over the data, that an encoder's projection is fitted on."""


def encode(
    source: PairSource, image_encoder: Encoder, text_encoder: Encoder, folder: Path, *, progress: bool = True
) -> tuple[Tensor, Tensor]:
    """Return image and text features of every pair.

    Chunks are written to `folder` as they are made; a second call with the same data and encoders goes on after the
    last one and returns the very features that one call would have. Memory holds a few chunks, never all features.

    A feature that is the zero vector (a text without a known piece of a word) stays zero: it is similar to nothing.

    Args:
        source: the data.
        image_encoder: encoder of the images.
        text_encoder: encoder of the texts.
        folder: where chunks are kept; emptied if they are of other data or encoders. One process at a time.
        progress: show a progress bar on stderr where that is a terminal.

    Returns:
        Two tensors, float32, unit norm or zero, shapes (N, D_image) and (N, D_text), memory-mapped from `folder`.

    Raises:
        DataError: an image cannot be read, or there are fewer than there are pairs.
        ArtifactError: the folder cannot be written.
    """
    _claim(folder, source, image_encoder, text_encoder)
    n = len(source)
    console = Console(stderr=True)
    with Progress(console=console, disable=not (progress and console.is_terminal), transient=True) as bar:
        tasks = bar.add_task("Encoding images", total=n), bar.add_task("Encoding texts", total=n)
        _encode(image_encoder, lambda start: source.images(start, n), n, folder / "image", _advance(bar, tasks[0]))
        if text_encoder.learn is not None:
            text_encoder.learn(source.texts)
        _encode(text_encoder, lambda start: source.texts[start:], n, folder / "text", _advance(bar, tasks[1]))
    return _finished(image_encoder, folder / "image", n), _finished(text_encoder, folder / "text", n)


def _encode(
    encoder: Encoder, samples: Callable[[int], Iterable[Any]], n: int, folder: Path, advance: Callable[[int], None]
) -> None:
    """Write the chunks that are not there yet."""
    folder.mkdir(exist_ok=True)
    done = 0
    while done < n and (chunk := _read(_chunk_file(folder, done))) is not None and len(chunk) == min(CHUNK, n - done):
        done += len(chunk)
    advance(done)
    for batch in _chunks(samples(done)) if done < n else ():
        with replaced_file(_chunk_file(folder, done)) as file:
            write_tensors({"features": encoder.encode(batch).float()}, file)
        done += len(batch)
        advance(len(batch))
    if done < n:
        raise DataError(f"Expected {n} samples, got {done}: the data changed while they were read. Start again.")


def _finished(encoder: Encoder, folder: Path, n: int) -> Tensor:
    """Return the features that the chunks hold, projected if the encoder does that, at unit norm, memory-mapped."""
    files = [_chunk_file(folder, start) for start in range(0, n, CHUNK)]
    project = _projection(encoder, files, n)
    whole, dim = folder.with_suffix(".float32"), 0
    with replaced_file(whole) as partial, partial.open("wb") as stream:
        for file in files:
            features = F.normalize(project(load_file(file)["features"]), dim=1)
            features.numpy().tofile(stream)
            dim = features.shape[1]
    return torch.from_file(str(whole), size=n * dim, dtype=torch.float32).view(n, dim)


def _projection(encoder: Encoder, files: Sequence[Path], n: int) -> Callable[[Tensor], Tensor]:
    """Return what maps a chunk to features."""
    if encoder.fit is None:
        return Tensor.contiguous
    step = max(1, n // FITTED_ON)
    # Chunks begin at multiples of CHUNK; the rows taken are 0, step, 2 * step, ... of the whole.
    some = [load_file(file)["features"][-index * CHUNK % step :: step] for index, file in enumerate(files)]
    return encoder.fit(torch.cat(some))


def _chunk_file(folder: Path, start: int) -> Path:
    return folder / f"{start // CHUNK:06d}.safetensors"


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


def _claim(folder: Path, source: PairSource, image_encoder: Encoder, text_encoder: Encoder) -> None:
    """Make the folder ready for chunks of these data and encoders; other chunks go."""
    plan = {
        "data": source.fingerprint(),
        "image": image_encoder.name,
        "text": text_encoder.name,
        "chunk": CHUNK,
        # What another version learns may differ; features of two versions in one file would not be comparable.
        "versions": [__version__, torch.__version__, version("scikit-learn")],
    }
    file = folder / "plan.json"
    if not file.exists() or file.read_text() != json.dumps(plan):
        for item in folder.iterdir() if folder.exists() else ():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    with replaced_file(file) as partial:
        partial.write_text(json.dumps(plan))


def _advance(bar: Progress, task: TaskID) -> Callable[[int], None]:
    return lambda count: bar.advance(task, count)
