"""Changes that a training run makes outside this package; they are undone when the run ends.

`installed` lists our replacements, and `restored_process` the settings that open_clip changes. In addition, the run closes
TensorBoard's writer, and captures ``sys.stderr`` while open_clip parses its arguments (`arguments.parsed`).

Two changes stay: open_clip seeds the global random generators, and open_clip's registry of models keeps our small models
(``open_clip.add_model_config``). ``sys.argv``, signal handlers and warning filters never change.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from PIL import EpsImagePlugin
from torch import distributed as dist
from torch.nn import parallel

from clip_negatives.dataset.images import pillow_limit
from clip_negatives.integrations.open_clip import stream_tars, table_dataset
from clip_negatives.integrations.open_clip.adapter import Adapter, Replacement
from clip_negatives.integrations.open_clip.checkpoints import atomic_save, latest_checkpoint
from clip_negatives.integrations.open_clip.seam import Negatives
from clip_negatives.integrations.open_clip.untrusted import load_checkpoint


class CpuDistributedDataParallel(parallel.DistributedDataParallel):
    """`DistributedDataParallel` that ignores ``device_ids`` for a module on the CPU; open_clip always passes them."""

    def __init__(self, module: torch.nn.Module, device_ids: Any = None, *rest: Any, **named: Any) -> None:
        on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
        super().__init__(module, None if on_cpu else device_ids, *rest, **named)


# Replacements, each `(module, name, value)`.
CPU_DDP = (parallel, "DistributedDataParallel", CpuDistributedDataParallel)
NO_GHOSTSCRIPT = (EpsImagePlugin, "gs_binary", False)  # an EPS image is a program: it must not start Ghostscript


@contextmanager
def installed(
    adapter: Adapter, negatives: Negatives, dataset_type: str = "auto", known_missing: frozenset[str] = frozenset()
) -> Iterator[None]:
    """Make the replacements of a run of ``open_clip_train.main``, and restore everything at the end.

    `dataset_type` is the value of ``--dataset-type``; `known_missing` are the tars that were missing in `prepare`.
    """
    main = adapter.main
    replacements: list[Replacement] = [
        *adapter.replacements(negatives),
        (*adapter.checkpoint_reader, load_checkpoint),  # a damaged checkpoint stops with an error message
        (main, "get_latest_checkpoint", latest_checkpoint(main)),  # in folders of any name
        *table_dataset.replacements(dataset_type),  # tables of more kinds than csv; a pipe in place of an image does not block
        *stream_tars.replacements(known_missing),  # tars are opened as in `prepare`, and read within our limits
        NO_GHOSTSCRIPT,
        CPU_DDP,
        (torch, "save", atomic_save(torch.save)),  # a killed process or a full disk leaves no partial checkpoint
        (logging, "raiseExceptions", False),  # a full disk is reported once, by the checkpoint, not for every log line
    ]
    # pillow_limit raises PIL.Image.MAX_IMAGE_PIXELS to the limit "pixels".
    with restored_process(), replaced(*replacements), pillow_limit(), negatives.run:
        yield


@contextmanager
def replaced(*replacements: Replacement) -> Iterator[None]:
    """Set attributes, each given as ``(owner, name, value)``, and restore the former values at the end."""
    with ExitStack() as stack:
        for owner, name, value in replacements:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


@contextmanager
def restored_process() -> Iterator[None]:
    """Restore torch's settings, ``os.environ``, levels of loggers and handlers of the root logger; end the process group."""
    import torch._dynamo.config as dynamo  # imported here, because it is slow

    settings: list[tuple[Any, str]] = [(dynamo, "optimize_ddp")]
    if torch.cuda.is_available():
        cudnn = torch.backends.cudnn
        settings += [(torch.backends.cuda.matmul, "allow_tf32"), (cudnn, "benchmark"), (cudnn, "deterministic")]
    environment, handlers = dict(os.environ), list(logging.root.handlers)
    levels = {logger: logger.level for logger in _loggers()}
    had_group = dist.is_available() and dist.is_initialized()
    try:
        with replaced(*((owner, name, getattr(owner, name)) for owner, name in settings)):
            yield
        if not had_group and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()  # not after an error: other processes may still wait in the group
    finally:
        for name in os.environ.keys() - environment.keys():  # WDS_EPOCH; under Slurm also RANK, LOCAL_RANK and WORLD_SIZE
            del os.environ[name]
        os.environ.update(environment)
        for logger in _loggers():
            logger.setLevel(levels.get(logger, logging.NOTSET))
        for handler in [handler for handler in logging.root.handlers if handler not in handlers]:
            logging.root.removeHandler(handler)
            handler.close()


def _loggers() -> list[logging.Logger]:
    named = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in named if isinstance(logger, logging.Logger))]
