"""The training data that open_clip's arguments name: their pairs, and the steps of an epoch."""

from __future__ import annotations

import math
import os
import socket
from argparse import Namespace
from pathlib import Path

from open_clip_train.data import expand_urls, get_dataset_size
from open_clip_train.distributed import is_using_distributed, world_info_from_env

from clip_negatives.advice import named
from clip_negatives.dataset import TablePairs, TarPairs, open_pairs
from clip_negatives.dataset.columns import Columns
from clip_negatives.distributed.environment import check_address, started_processes
from clip_negatives.errors import DataError, ProcessError
from clip_negatives.integrations.open_clip.arguments import OPTIONS, kind_of
from clip_negatives.storage.safe_reading import read_json

SIZES, LENGTH = "sizes.json", "__len__"  # files beside the shards: number of samples of each shard, and of all shards


def pairs(args: Namespace, group: str | None = None, data: str | None = None) -> TablePairs | TarPairs:
    """Open `data` (default: the training data), see `columns_of`."""
    with named(OPTIONS):
        columns, location = columns_of(args, group), data or args.train_data
        return open_pairs(location, columns, dataset_type=args.dataset_type, may_lack_tars=True)  # see `check_paths`


def columns_of(args: Namespace, group: str | None = None) -> Columns:
    """Return the columns that open_clip's arguments name; `group` is the column or field of groups."""
    return Columns(args.csv_img_key or None, args.csv_caption_key or None, group, args.csv_separator or None)


def check_validation(args: Namespace) -> None:
    """Check that the validation data can be read; DataError if not."""
    if args.val_data and kind_of(args, args.val_data) != "synthetic":
        pairs(args, data=args.val_data)
        _check_counts(args.val_data)


def check_environment(dist_url: str | None) -> None:
    """Raise ProcessError if a variable of the launcher (torchrun, Slurm or MPI) is missing or invalid."""
    started_processes()
    try:
        is_distributed = is_using_distributed() and world_info_from_env()[2] > 1
    except ValueError as error:
        raise ProcessError(f"A variable of Slurm or MPI has no whole number: {error}. Correct or unset it.") from error
    if is_distributed and (dist_url or "env://").startswith("env://"):
        check_address(*(() if "SLURM_PROCID" in os.environ else ("RANK",)))


def rank() -> int:
    """Return the rank of this process by open_clip's rule: 0 unless torchrun or Slurm started several processes."""
    return int(world_info_from_env()[1]) if is_using_distributed() else 0


def place_of_files(args: Namespace) -> tuple[str, str, str]:
    """Return machine, working folder and address of the training data; processes with equal values read the same files."""
    return socket.gethostname(), str(Path.cwd()), str(args.train_data)


def world_size() -> int:
    """Return the number of processes by open_clip's rule: 1 unless torchrun or Slurm started several."""
    return int(world_info_from_env()[2]) if is_using_distributed() else 1


def steps_of_epoch(args: Namespace) -> int:
    """Return the steps of an epoch, at least one; DataError if there are too few samples or their number is unknown."""
    if kind_of(args) == "webdataset":
        return _steps_of_stream(args)
    n = number_of_pairs(args)
    step_size = args.batch_size * world_size()
    if step_size > n:
        repair = "Use a smaller --batch-size" if n >= world_size() else "Use fewer processes"
        raise DataError(
            f"A step needs {step_size} pairs (batch size {args.batch_size} x {world_size()} processes), but "
            f"{args.train_data or 'the synthetic data'} has {n}. {repair if n > 1 else 'Add pairs'}."
        )
    return int(n // step_size)


def number_of_pairs(args: Namespace) -> int:
    """Return the number of training pairs; of a stream, the samples of an epoch, or DataError if they are unknown."""
    kind = kind_of(args)
    if kind == "webdataset":
        return samples_of_stream(args)
    return int(args.train_num_samples) if kind == "synthetic" else len(pairs(args).keys)


def _steps_of_stream(args: Namespace) -> int:
    """Return the steps of an epoch over a stream, or raise DataError if a loader process cannot fill a batch.

    Each worker of each process reads whole shards, and fills batches from its own shards only. If they cannot fill a batch,
    open_clip would wait for ever.
    """
    _check_counts(args.train_data)
    shards = _shards(args)
    counts, n = _sizes(shards), samples_of_stream(args)
    readers = world_size() * max(1, args.workers)
    repairs = ["fewer --workers"] if args.workers > 1 and len(shards) >= world_size() else []
    repairs += ["fewer processes"] if world_size() > 1 else []
    if not args.dataset_resampled and len(shards) < readers:
        raise DataError(
            f"{world_size()} processes with {max(1, args.workers)} workers need at least {readers} shards, but "
            f"{args.train_data} has {len(shards)}. Use {', or '.join([*repairs, '--dataset-resampled'])}."
        )
    share = len(shards) // readers
    least = sum(sorted(counts)[:share]) if counts else n * share // len(shards)
    if not args.dataset_resampled and least < args.batch_size:
        repairs = ["a smaller --batch-size", *repairs] if least * world_size() > 1 else repairs
        raise DataError(
            f"The shards of {args.train_data} cannot fill a batch of {args.batch_size} in each of {readers} loader processes: "
            f"one process gets {least} samples. Use {', or '.join([*repairs, '--dataset-resampled'])}."
        )
    return math.ceil(n / int(args.batch_size * world_size()))


def _check_counts(urls: str) -> None:
    """Raise DataError if sizes.json or ``__len__`` beside the first shard is not a regular file."""
    folder = Path(expand_urls(urls)[0][0]).parent
    for file in (folder / SIZES, folder / LENGTH):
        if file.exists() and not file.is_file():
            raise DataError(f"{file} must have the number of samples, but it is not a regular file. Repair or remove it.")


def samples_of_stream(args: Namespace) -> int:
    """Return the number of samples of an epoch over a stream, by the same rule as open_clip; DataError if it is unknown."""
    counts = _sizes(_shards(args))
    n: int = args.train_num_samples or (_length(args.train_data) if counts is None else sum(counts))
    if not n:
        raise DataError(
            f"The number of samples in {args.train_data} is unknown: no sizes.json and no __len__ beside the shards. "
            "Add --train-num-samples."
        )
    return n


def _shards(args: Namespace) -> list[Path]:
    return [Path(url) for url in expand_urls(args.train_data)[0]]


def _sizes(shards: list[Path]) -> list[int] | None:
    """Return the number of samples of each shard, from sizes.json beside the first shard, or None without this file."""
    sizes = shards[0].parent / SIZES
    if not sizes.is_file():
        return None
    try:
        by_name = read_json(sizes, "json_bytes")
        counts = [int(by_name[shard.name]) for shard in shards]
        if min(counts) < 0:
            raise ValueError("a negative number")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{sizes} must have the number of samples of every shard: {error!r}. Repair or remove it.") from error
    return counts


def _length(urls: str) -> int:
    """Return the number of samples in the file ``__len__`` beside the shards, 0 if there is none."""
    try:
        length = get_dataset_size(urls)[0]
        if length is not None and (type(length) is not int or length < 0):
            raise ValueError(str(length)[:80])
    except (OSError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:  # of `ast.literal_eval`
        raise DataError(f"The file __len__ beside {urls} must hold the number of samples: {error!r}. Repair it.") from error
    return length or 0
