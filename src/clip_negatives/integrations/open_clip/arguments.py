"""open_clip's arguments, read by its own parser, and checks of the paths that they name. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import io
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from clip_negatives.advice import named
from clip_negatives.dataset import formats
from clip_negatives.dataset.urls import check_reachable
from clip_negatives.errors import InputError
from clip_negatives.integrations.open_clip.adapter import check_installed
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.storage.manifest import LABELS_FOLDER, check_clusters
from clip_negatives.storage.paths import obstacle

LATEST = "latest"  # value of `--resume` that is not a file

# open_clip's option for each field of `Columns`, and for the kind of the data.
OPTIONS = {
    "separator": "--csv-separator",
    "image": "--csv-img-key",
    "text": "--csv-caption-key",
    "dataset_type": "--dataset-type",
}

# First arguments of each run: empty values replace open_clip's defaults, so columns and separator are detected.
FOUND = ("--csv-separator=", "--csv-img-key=", "--csv-caption-key=")


def parsed(arguments: Sequence[str]) -> Namespace:
    """Return the arguments as open_clip's parser reads them; ``--help`` prints the help and exits."""
    check_installed()
    from open_clip_train.params import parse_args

    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            args: Namespace = parse_args([*FOUND, *arguments])
    except ValueError as error:
        splits = "unpack" in str(error)  # open_clip splits each --aug-cfg at "="
        fault = "--aug-cfg needs settings name=value" if splits else f"open_clip's arguments: {str(error).rstrip('.')}"
        raise InputError(f"{fault}. Correct it.") from error
    except SystemExit as stopped:
        if not stopped.code:
            raise
        fault = output.getvalue().strip().rpartition("error: ")[2]
        raise InputError(f"open_clip's arguments: {fault}. For a list: clip-negatives train -- --help") from None
    return args


def kind_of(args: Namespace, data: str | None = None) -> Literal["table", "webdataset", "synthetic"]:
    """Return the kind of `data` (default: the training data)."""
    if args.dataset_type == "synthetic":
        return "synthetic"
    with named(OPTIONS):
        kind = formats.kind_of(data or args.train_data, args.dataset_type)
    return "webdataset" if kind == "webdataset" else "table"


def check_paths(arguments: Sequence[str], options: TrainOptions) -> None:
    """Check, without reading data, that open_clip's arguments are valid, data and clusters exist, and the run can be written.

    Raises:
        InputError: an argument is unknown, the file of ``--resume`` is missing, or ``--logs`` or ``--name`` cannot be used.
        DataError: a file of the training or validation data is missing.
        ArtifactError: the clusters folder is missing.
    """
    args = parsed(arguments)
    for data in filter(None, (args.train_data, args.val_data)):
        if args.dataset_type != "synthetic":
            with named(OPTIONS):
                formats.check_exists(data, args.dataset_type, options.known_missing)
    if args.resume == LATEST and not args.name:
        raise InputError("--resume latest needs the name of the run. Add --name.")
    if args.resume and args.resume != LATEST and "://" not in args.resume and not Path(args.resume).is_file():
        fault = "is not a regular file" if Path(args.resume).exists() else "does not exist"
        raise InputError(f"--resume must be a checkpoint file or latest, but the file {args.resume} {fault}.")
    if args.resume and "://" in args.resume:
        check_reachable("checkpoint", args.resume)
    if options.clusters is not None and not LABELS_FOLDER.is_at(options.clusters):
        check_clusters(options.clusters)
    if (folder := obstacle(Path(args.logs) / "run")) is not None:
        raise InputError(f"--logs {args.logs} cannot be written: {folder} is not a writable folder. Use another --logs.")
    run = Path(args.logs) / (args.name or "")
    if args.name and args.resume != LATEST and (run / "out.log").exists() and _is_rank_zero():
        repair = "Continue it with --resume latest" if has_checkpoint(run) else f"Remove {run}, which has no checkpoint"
        raise InputError(f"{args.logs} already has a run {args.name}. {repair}, or use another --name.")


def has_checkpoint(run: Path) -> bool:
    """Return whether the folder of a run has a checkpoint to resume from."""
    return any((run / "checkpoints").glob("*.pt"))


def _is_rank_zero() -> bool:
    """Return whether this process has rank 0, by open_clip's rule."""
    if {"WORLD_SIZE", "SLURM_NTASKS"}.isdisjoint(os.environ):
        return True
    from clip_negatives.integrations.open_clip.train_set import rank  # imports torch

    return rank() == 0
