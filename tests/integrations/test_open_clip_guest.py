"""A training run leaves the process as it was."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch._dynamo.config
from open_clip_train.logger import setup_logging
from PIL import EpsImagePlugin, Image, ImageFile

from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ClipNegativesError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.integrations.open_clip.adapter import installed
from clip_negatives.integrations.open_clip.guest import replaced, restored_process
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.printing import log

FUNCTIONS = {"version3": ("main.create_loss", "main.pt_load"), "version4": ("file_utils.pt_load", "data.SyntheticDataset")}
"""Functions that are replaced in one generation of open_clip only."""

THEIRS = ("open_clip_train", "webdataset", "torch.nn.parallel", "torch.optim")


def state() -> dict[str, Any]:
    """Return what a training run could change: attributes of modules, settings, environment, threads."""
    modules: dict[str, ModuleType] = {name: module for name, module in sys.modules.items() if name.startswith(THEIRS)}
    attributes = {f"{name}.{key}": value for name, module in modules.items() for key, value in vars(module).items()}
    named = logging.root.manager.loggerDict.items()
    loggers = {f"logger {name}": logger.level for name, logger in named if isinstance(logger, logging.Logger)}
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        attributes
        | loggers
        | {
            "torch.save": torch.save,
            "torch settings": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), cudnn.benchmark),
            "torch precision": (cudnn.deterministic, matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()),
            "torch._dynamo": torch._dynamo.config.optimize_ddp,
            "process group": torch.distributed.is_initialized(),
            "PIL": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, EpsImagePlugin.gs_binary),
            "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
            "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
            "sys": (list(sys.argv), sys.stdout, sys.stderr, sys.excepthook, sys.getrecursionlimit(), list(sys.path)),
            "warnings": list(warnings.filters),
            "logging": (logging.raiseExceptions, list(logging.root.handlers), logging.root.level),
            "threads": {thread.ident for thread in threading.enumerate()},
        }
    )


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what differs, old and new; modules that were imported meanwhile do not count."""
    pairs = {name: (value, after[name]) for name, value in before.items() if value is not after[name] and value != after[name]}
    return {
        name: tuple({key: side[key] for key in side if old.get(key) != new.get(key)} for side in (old, new))
        if isinstance(old, dict)
        else (old, new)
        for name, (old, new) in pairs.items()
    }


@pytest.fixture
def options(train_csv: Path, tmp_path: Path) -> dict[str, Any]:
    prepare(open_pairs(str(train_csv)), tmp_path / "clusters", progress=False)
    return {"clusters": tmp_path / "clusters", "temperature": 0.1, "refresh_every": 1}


@pytest.fixture
def before(arguments: list[str], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the state before a run, once everything that a run imports is imported."""
    train([*arguments, "--name", "first", "--report-to", "tensorboard"], TrainOptions(**options))
    monkeypatch.setenv("CLIP_NEGATIVES_LIMITS", "pixels=123456789")
    return state()


def test_the_process_is_as_before(arguments: list[str], options: dict[str, Any], before: dict[str, Any]) -> None:
    during: dict[str, Any] = {}
    observed = TrainOptions(**options, on_batch=lambda samples: during.update(state()))
    train([*arguments, "--name", "run", "--report-to", "tensorboard", "--epochs", "2"], observed)
    assert changes(before, state()) == {}
    assert {
        *(f"open_clip_train.{name}" for name in FUNCTIONS[type(installed()).__module__.rpartition(".")[2]]),
        "open_clip_train.main.get_data",
        "open_clip_train.main.get_latest_checkpoint",
        "open_clip_train.main.train_one_epoch",
        "open_clip_train.data.CsvDataset",
        "open_clip_train.data.get_dataset_fn",
        *(
            f"{module}.{name}"
            for module in ("open_clip_train.data", "webdataset.tariterators")
            for name in ("url_opener", "tar_file_expander")
        ),
        "torch.nn.parallel.DistributedDataParallel",
        "torch.save",
        "PIL",
        "logging",
        "threads",  # of TensorBoard
    } == {name for name in changes(before, during) if not name.startswith("logger ")}


def test_the_process_is_as_before_after_an_error(arguments: list[str], options: dict[str, Any], before: dict[str, Any]) -> None:
    def fail(samples: object) -> None:
        raise ClipNegativesError("stop")

    with pytest.raises(ClipNegativesError, match="stop"):
        train([*arguments, "--name", "run", "--report-to", "tensorboard"], TrainOptions(**options, on_batch=fail))
    assert changes(before, state()) == {}


def test_replacements_are_put_back_in_any_order() -> None:
    module = ModuleType("module")
    module.a = 1
    with replaced((module, "a", 2), (module, "a", 3)):
        assert module.a == 3
    assert module.a == 1
    with pytest.raises(AttributeError), replaced((module, "a", 2), (module, "b", 2)):
        pass
    assert module.a == 1


def test_records_of_this_package_forge_no_line_in_the_log_of_open_clip(tmp_path: Path) -> None:
    with restored_process():
        setup_logging(str(tmp_path / "out.log"), logging.INFO)
        log("a\n2024-01-01,00:00:00 | INFO | Contrastive_loss: 0.0 \x1b[2J", logging.INFO)
    (line,) = (tmp_path / "out.log").read_text().splitlines()
    assert line.endswith(r" | clip-negatives: a\n2024-01-01,00:00:00 | INFO | Contrastive_loss: 0.0 \x1b[2J")
