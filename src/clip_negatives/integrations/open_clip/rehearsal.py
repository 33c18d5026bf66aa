"""A rehearsal of open_clip's start: it detects wrong arguments and checkpoints before open_clip writes its first file."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import textwrap
import warnings
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from open_clip import factory
from PIL import Image

from clip_negatives.errors import ArtifactError, ClipNegativesError, InputError
from clip_negatives.integrations.open_clip import guest, table_dataset
from clip_negatives.integrations.open_clip.adapter import Adapter, Replacement
from clip_negatives.integrations.open_clip.arguments import kind_of
from clip_negatives.integrations.open_clip.checkpoints import read_checkpoint, resumed_file
from clip_negatives.integrations.open_clip.train_set import world_size
from clip_negatives.storage.safe_reading import one_line


class RehearsedError(Exception):
    """The end of a rehearsal that detected no fault."""


def rehearse(adapter: Adapter, args: Namespace) -> None:
    """Run open_clip's main function up to the training data, with a temporary folder for its logs.

    open_clip's own code creates the model and the optimizer, loads weights and a checkpoint, and opens the evaluation data. The
    first rehearsal uses torch's device "meta", so the model needs no memory. Some models cannot be created on this device:
    after a fault, the rehearsal is repeated on the CPU.

    Raises:
        ArtifactError: a file of weights or a checkpoint is damaged, or does not fit the model.
        InputError: open_clip cannot start with these arguments.
    """
    if _fault(adapter, args, "meta") is not None and (fault := _fault(adapter, args, "cpu")) is not None:
        raise fault


def _fault(adapter: Adapter, args: Namespace, device: str) -> ClipNegativesError | None:
    """Return the error of a rehearsal on a device, or None."""
    checkpoint = resumed_file(adapter.main, args)
    with ExitStack() as stack:
        start = _Start(adapter, args, stack.enter_context(tempfile.TemporaryDirectory()), checkpoint, device)
        stack.enter_context(guest.restored_process())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the training repeats all warnings
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable()
        stack.enter_context(guest.replaced(*start.replacements()))
        stack.enter_context(torch.device(device))
        try:
            adapter.main.main([])
        except RehearsedError:
            return None
        except ClipNegativesError as error:
            return error
        except Exception as error:  # open_clip does not document its errors
            return start.fault(error)
        except SystemExit as error:
            return start.fault(RuntimeError(f"it exits with code {error.code}"))
    return None


class _Start:
    """A start of open_clip with replaced arguments, on a single process."""

    def __init__(self, adapter: Adapter, args: Namespace, logs: str, checkpoint: Path | None, device: str) -> None:
        self._adapter, self._args, self._checkpoint, self._device = adapter, args, checkpoint, device
        self._resume = None if checkpoint is None else str(checkpoint)
        self._logs, self._loads_checkpoint = logs, False
        self._get_data, self._load_weights = adapter.main.get_data, factory.load_checkpoint

    def replacements(self) -> list[Replacement]:
        """Return the attributes to replace, for `guest.replaced`."""
        main = self._adapter.main
        changes = {"logs": self._logs, "name": "rehearsal", "resume": self._resume, "remote_sync": None, "copy_codebase": False}
        return [
            (main, "parse_args", lambda _: Namespace(**{**vars(self._args), **changes})),
            (main, "init_distributed_device", self._one_process),
            (main, "setup_logging", lambda *_: None),
            (main, "random_seed", lambda *_: None),
            (*self._adapter.checkpoint_reader, self._read_checkpoint),
            (main, "get_data", self._try_data),
            (factory, "load_checkpoint", self._try_weights),
            *self._adapter.checks(),
            *table_dataset.replacements(self._args.dataset_type),
        ]

    def fault(self, error: Exception) -> ClipNegativesError:
        """Return our error for an error of open_clip."""
        if self._loads_checkpoint:
            fault = f"The checkpoint {self._resume} does not fit the model {self._args.model} and its optimizer"
            return ArtifactError(f"{fault}: {_reason(error)}. Use the arguments of its run or another --resume.")
        frozen = self._args.lock_text_freeze_layer_norm
        repair = "Add --lock-text-freeze-layer-norm" if self._args.lock_text and not frozen else "Correct the arguments"
        return InputError(f"open_clip cannot start with these arguments: {_reason(error)}. {repair}.")

    def _one_process(self, args: Namespace) -> torch.device:
        args.device, args.distributed, args.world_size, args.rank, args.local_rank = self._device, False, 1, 0, 0
        return torch.device(self._device)

    def _try_weights(self, model: Any, checkpoint_path: str, *rest: Any, **named: Any) -> Any:
        try:
            return self._load_weights(model, checkpoint_path, *rest, **named)
        except Exception as error:
            # Only a RuntimeError describes the problem. Other errors may advise the user to load the file unsafely.
            reason = _reason(error) if isinstance(error, RuntimeError) else "the file is damaged or does not hold a model"
            fault = f"The weights {checkpoint_path} cannot be loaded into the model {self._args.model}: {reason}"
            raise ArtifactError(f"{fault}. Use other weights, or the model that they belong to.") from error

    def _read_checkpoint(self, *_: Any, **__: Any) -> Any:
        self._loads_checkpoint = True
        return None if self._checkpoint is None else read_checkpoint(self._checkpoint, self._args)

    def _try_data(self, args: Namespace, transforms: Any, *, tokenizer: Any, **named: Any) -> None:
        """Open the evaluation data and the stream of training data, and try the transforms and the tokenizer."""
        self._loads_checkpoint = False
        kind = kind_of(self._args)
        changes = {"train_data": args.train_data if kind == "webdataset" else None, "world_size": world_size()}
        with torch.device("cpu"):
            tokenizer([""])
            for transform in transforms:
                transform(Image.new("RGB", (8, 8)))
            self._get_data(Namespace(**{**vars(args), **changes}), transforms, tokenizer=tokenizer, **named)
        raise RehearsedError


def _reason(error: Exception) -> str:
    name = f"{type(error).__name__}: " if isinstance(error, LookupError | ImportError) else ""
    return textwrap.shorten(f"{name}{one_line(error) or type(error).__name__}", 300).rstrip(".")
