"""The training data that open_clip's arguments name, the processes that share them, and the steps of an epoch."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from pathlib import Path

from open_clip_train.data import expand_urls, get_dataset_size

from clip_negatives.dataset import CsvPairs, TarPairs, open_pairs
from clip_negatives.errors import DataError
from clip_negatives.reading import read_json


def kind_of(args: Namespace) -> str:
    """Return "csv", "webdataset" or "synthetic", by open_clip's own rule."""
    if args.dataset_type != "auto":
        return str(args.dataset_type)
    return "csv" if args.train_data.rsplit(".", 1)[-1] in ("csv", "tsv") else "webdataset"


def pairs(args: Namespace) -> CsvPairs | TarPairs:
    """Open the training data as open_clip will."""
    return open_pairs(
        args.train_data,
        dataset_type=kind_of(args),
        image_column=args.csv_img_key,
        text_column=args.csv_caption_key,
        separator=args.csv_separator,
    )


def rank() -> int:
    """Return the rank that the launcher gave this process, before open_clip joins the process group."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def world_size() -> int:
    """Return the number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))


def steps_of_epoch(args: Namespace) -> int:
    """Return the steps of an epoch, of which there is at least one.

    Raises:
        DataError: the data do not suffice for one, or their number is not known.
    """
    kind = kind_of(args)
    if kind == "webdataset":
        return _steps_of_stream(args)
    return _steps(args, args.train_num_samples if kind == "synthetic" else len(pairs(args).keys))


def _steps(args: Namespace, n: int) -> int:
    """Return the steps of an epoch over data that are asked for by index, of which there is at least one."""
    one_step = args.batch_size * world_size()
    if one_step > n:
        raise DataError(
            f"Expected at least {one_step} pairs for one step (batch size {args.batch_size} x {world_size()} processes), got "
            f"{n} in {args.train_data or 'synthetic data'}. Use a smaller --batch-size."
        )
    return int(n // one_step)


def _steps_of_stream(args: Namespace) -> int:
    """Return the steps of an epoch over a stream, once every loader process can fill a batch.

    Shards are dealt out whole to the processes and their workers, and no batch mixes those of two: open_clip waits without end
    for one that cannot be filled.

    Raises:
        DataError: the number of samples is not known, or the shards do not suffice.
    """
    shards, counts = _shards(args.train_data)
    n: int = args.train_num_samples or (sum(counts) if counts is not None else _length(args.train_data))
    if not n:
        raise DataError(
            f"Expected --train-num-samples for {args.train_data}, beside which neither sizes.json nor __len__ gives "
            "the number of samples."
        )
    readers = world_size() * max(1, args.workers)
    if not args.dataset_resampled and shards < readers:
        raise DataError(
            f"Expected at least {readers} shards for {world_size()} processes with {max(1, args.workers)} workers, got "
            f"{shards} in {args.train_data}. Use fewer --workers, or --dataset-resampled."
        )
    share = shards // readers
    least = sum(sorted(counts)[:share]) if counts else n * share // shards
    if not args.dataset_resampled and least < args.batch_size:
        raise DataError(
            f"Expected shards that fill a batch of {args.batch_size} for each of {readers} loader processes, got {least} "
            f"samples for one in {args.train_data}. Use a smaller --batch-size, fewer --workers, or --dataset-resampled."
        )
    return math.ceil(n / int(args.batch_size * world_size()))


def _shards(urls: str) -> tuple[int, list[int] | None]:
    """Return the number of shards, and the samples of each where a sizes.json beside them says.

    Raises:
        DataError: there is one that does not say it of every shard.
    """
    files = [Path(url) for url in expand_urls(urls)[0]]
    sizes = files[0].parent / "sizes.json"
    if not sizes.is_file():
        return len(files), None
    try:
        counts = read_json(sizes, "json_bytes")
        found = [int(counts[file.name]) for file in files]
        if min(found) < 0:
            raise ValueError("a negative number")
        return len(files), found
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"Expected {sizes} to give the samples of every shard, got one that does not: {error!r}.") from error


def _length(urls: str) -> int:
    """Return the number of samples that a file ``__len__`` beside the shards says, 0 where there is none.

    Raises:
        DataError: it says something else.
    """
    try:
        found = get_dataset_size(urls)[0]
    except (OSError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:  # of `ast.literal_eval`
        raise DataError(f"Expected the number of samples in __len__ beside {urls}, got: {error!r}.") from error
    if found is not None and (type(found) is not int or found < 0):
        raise DataError(f"Expected the number of samples in __len__ beside {urls}, got {str(found)[:80]}.")
    return found or 0
