"""A comparison's training and test data, and the arguments of open_clip_train that all its runs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives import catalogue
from clip_negatives.advice import argument, named
from clip_negatives.dataset.columns import Columns
from clip_negatives.dataset.formats import check_exists
from clip_negatives.dataset.opening import open_pairs
from clip_negatives.errors import DataError, InputError
from clip_negatives.integrations.open_clip.arguments import OPTIONS, parsed
from clip_negatives.storage.ownership import claim_work
from clip_negatives.storage.paths import check_writable

if TYPE_CHECKING:
    from clip_negatives.dataset import TablePairs, TarPairs

TINY = "clip-negatives-tiny"  # the default model, small enough for two cores
TINY_SETTINGS = (  # of the tiny model alone; every other model has open_clip's defaults
    "--batch-size 256 --epochs 20 --lr 4e-3 --beta1 0.9 --beta2 0.98 --eps 1e-6 --wd 0.1 --warmup 10 --workers 0 "
    "--precision fp32"
)
OUTPUT = "--log-every-n-steps 1 --save-frequency 0"  # what the results need; no effect on the trained model
QUICK = "--epochs 1"
RESERVED = ("name", "logs", "seed", "resume", "val_data")  # arguments that the comparison itself sets

# Names of column settings in the results: field of `Columns`, and argument of open_clip_train (None: no argument).
COLUMNS = {
    "separator": ("separator", "csv_separator"),
    "image_column": ("image", "csv_img_key"),
    "text_column": ("text", "csv_caption_key"),
    "group_column": ("group", None),
}


def with_defaults(arguments: Sequence[str], *, quick: bool) -> list[str]:
    """Return default arguments, then the user's arguments: argparse uses the last value of an option.

    The tiny model has settings of its own, every other model those of open_clip.

    Raises:
        InputError: the user sets an argument that the comparison sets.
    """
    given, defaults = parsed(arguments), parsed(())
    for name in RESERVED:
        if getattr(given, name) != getattr(defaults, name):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"compare sets {option} itself. Remove {option} from the arguments.")
    is_tiny = parsed(["--model", TINY, *arguments]).model == TINY
    return [
        "--model",
        TINY,
        *(TINY_SETTINGS.split() if is_tiny else ()),
        *OUTPUT.split(),
        *(QUICK.split() if quick else ()),
        *arguments,
    ]


def check_paths(line: Sequence[str], output: Path, test_data: str | None) -> None:
    """Check, without reading data, that arguments are known, data exist, and `output` can be written.

    `line` is the result of `with_defaults`.

    Raises:
        InputError: an argument of open_clip is unknown.
        DataError: training or test data are missing.
        ArtifactError: the output cannot be written.
    """
    args, option = parsed(line), argument("test_data")
    if args.train_data and test_data is None:
        raise DataError(f"--train-data needs test pairs. Add {option} with the file of pairs that are not used for training.")
    if not args.train_data and test_data is not None:
        raise DataError(f"{option} needs training data. Add --train-data FILE to the arguments of open_clip.")
    for data in filter(None, (args.train_data, test_data)):
        with named(OPTIONS):
            check_exists(data, args.dataset_type)
    check_writable(output / "results.json")


def resolve_data(
    line: list[str], output: Path, test_data: str | None, group: str | None
) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Return the arguments with training data (default: the catalogue), and descriptions of training and test pairs.

    `open_described` opens the pairs of a description.
    """
    train_data = parsed(line).train_data
    if not train_data:
        claim_work(output)
        train_data, test_data = (
            str(catalogue.export(output / "data" / split, split=split, format="csv") / f"{split}.csv")
            for split in ("train", "test")
        )
        line, group = [*line, "--train-data", train_data, "--dataset-type", "csv"], "item"
    args = parsed(line)
    settings: dict[str, Any] = {"dataset_type": args.dataset_type}
    for key, (_, name) in COLUMNS.items():
        settings[key] = getattr(args, name) or None if name else group
    return line, {"location": args.train_data, **settings}, {"location": test_data, **settings}


def open_described(data: Mapping[str, Any]) -> TablePairs | TarPairs:
    """Open the pairs of a description, as the results of a comparison have it."""
    columns = Columns(**{field: data.get(key) or None for key, (field, _) in COLUMNS.items()})
    with named(OPTIONS):
        return open_pairs(data["location"], columns, dataset_type=data.get("dataset_type", "auto"))
