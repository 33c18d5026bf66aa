"""The interface to open_clip's training, with one adapter for each of its generations.

open_clip 3 passes model, loss and optimizer to its training loop. open_clip 4 passes a task, which holds model and loss.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from clip_negatives.errors import UnsupportedError

if TYPE_CHECKING:
    from argparse import Namespace
    from types import ModuleType

    from torch import nn
    from torch.optim import Optimizer

    from clip_negatives.integrations.open_clip.seam import Negatives
    from clip_negatives.losses.module import NegativesClipLoss

SERVED = "open_clip_torch>=3.0,<5"
Replacement = tuple[Any, str, Any]  # owner, name of the attribute, new value; see `guest.replaced`

# Functions of open_clip that we replace or call, with the parameters that we use: of all generations, then by adapter.
_EXPECTED = {
    "open_clip.factory.load_checkpoint": ("model", "checkpoint_path"),
    "open_clip.get_input_dtype": ("precision",),
    "open_clip_train.data.CsvDataset": (),
    "open_clip_train.data.expand_urls": ("urls",),
    "open_clip_train.data.get_csv_dataset": (),
    "open_clip_train.data.get_dataset_fn": ("data_path", "dataset_type"),
    "open_clip_train.data.get_dataset_size": ("shards",),
    "open_clip_train.data.tar_file_expander": (),
    "open_clip_train.data.url_opener": (),
    "open_clip_train.distributed.is_using_distributed": (),
    "open_clip_train.distributed.world_info_from_env": (),
    "open_clip_train.main.get_data": ("args", "preprocess_fns", "epoch", "tokenizer"),
    "open_clip_train.main.get_latest_checkpoint": ("path", "remote"),
    "open_clip_train.main.init_distributed_device": ("args",),
    "open_clip_train.main.parse_args": ("args",),
    "open_clip_train.main.random_seed": (),
    "open_clip_train.main.setup_logging": (),
    "open_clip_train.precision.get_autocast": ("precision", "device_type"),
}
ADAPTERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "version3": {
        **_EXPECTED,
        "open_clip_train.main.create_loss": ("args",),
        "open_clip_train.main.pt_load": ("file_path", "map_location"),
        "open_clip_train.main.train_one_epoch": ("model", "data", "loss", "epoch", "optimizer"),
        "open_clip_train.train.unwrap_model": ("model",),
    },
    "version4": {
        **_EXPECTED,
        "open_clip.task.CLIPTask": ("model", "loss"),
        "open_clip.task.SigLIPTask": ("model", "loss"),
        "open_clip.task.get_model_from_task": (),
        "open_clip_train.data.SyntheticDataset": (),
        "open_clip_train.file_utils.pt_load": ("file_path", "map_location"),
        "open_clip_train.main.create_task": ("args", "model"),
        "open_clip_train.main.train_one_epoch": ("state", "data", "args", "tb_writer"),
        "open_clip_train.train.get_wandb_backend": ("args",),
    },
}


@dataclass(frozen=True)
class Epoch:
    """An epoch that open_clip is about to train.

    Attributes:
        number: number of the epoch, from 0.
        model: the model, without the wrappers of torch.compile and `DistributedDataParallel`.
        tb_writer: open_clip's TensorBoard writer, or None.
        train: trains the epoch as open_clip does.
    """

    number: int
    model: nn.Module
    loss: NegativesClipLoss
    optimizer: Optimizer
    tb_writer: Any
    train: Callable[[], None]


class Adapter(ABC):
    """The training of one generation of open_clip.

    Attributes:
        main: the module ``open_clip_train.main``.
        checkpoint_reader: owner and name of the function that reads a checkpoint for ``--resume``.
    """

    main: ModuleType
    checkpoint_reader: tuple[ModuleType, str]

    @abstractmethod
    def unsupported(self, args: Namespace) -> Iterator[tuple[str, str]]:
        """Yield each given option that does not work with this package, and the reason."""

    @abstractmethod
    def checks(self) -> list[Replacement]:
        """Return the functions of `main` to replace in a rehearsal, to check the model."""

    @abstractmethod
    def replacements(self, negatives: Negatives) -> list[Replacement]:
        """Return the functions of `main` to replace in a training run."""

    @abstractmethod
    def keep_entries(self, stages: list[Any], entries: tuple[str, ...]) -> bool:
        """Let the batches of a webdataset stream be ``(images, tokens, *entries)``; False if the stages are unknown."""

    @abstractmethod
    def as_batch(self, batch: Any) -> Any:
        """Return a batch ``(images, tokens)`` in the form that open_clip's loop expects."""

    @abstractmethod
    def wandb(self, args: Namespace) -> Any:
        """Return the module that open_clip logs to with the interface of wandb, or None."""


def check_installed() -> None:
    """Raise UnsupportedError if the installed open_clip has no training. This imports nothing."""
    if find_spec("open_clip_train") is None:
        raise _unsupported("module open_clip_train")


def installed() -> Adapter:
    """Return the adapter of the installed open_clip; UnsupportedError if it has another structure."""
    faults: list[list[str]] = []
    for name, expected in ADAPTERS.items():
        if not (missing := list(_missing(expected))):
            adapter: Adapter = import_module(f"{__package__}.{name}").OpenClip()
            return adapter
        faults.append(missing)
    raise _unsupported(f"{min(faults, key=len)[0]} in its training")


def _unsupported(missing: str) -> UnsupportedError:
    return UnsupportedError(f"open_clip_torch {version('open_clip_torch')} has no {missing}. Install {SERVED}.")


def _missing(expected: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield the expected functions that the installed open_clip lacks, or has with other parameters."""
    for place, parameters in expected.items():
        module, _, name = place.rpartition(".")
        try:
            function = getattr(import_module(module), name, None)
        except ImportError as error:
            yield f"module {module} ({error})"
            continue
        if not callable(function) or not set(parameters) <= set(inspect.signature(function).parameters):
            yield f"{name}({', '.join(parameters)})"
