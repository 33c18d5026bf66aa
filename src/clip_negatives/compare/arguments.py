"""The command line of open_clip_train that the runs of a comparison share, and the data they read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_negatives import catalogue
from clip_negatives.errors import DataError, InputError

MODEL = "clip-negatives-tiny"
"""Model of a comparison that names none: small enough for two cores."""

DEFAULTS = {
    "--model": MODEL,
    "--batch-size": "256",
    "--lr": "4e-3",
    "--beta1": "0.9",
    "--beta2": "0.98",
    "--eps": "1e-6",
    "--wd": "0.1",
    "--warmup": "10",
    "--workers": "0",
    "--precision": "fp32",
    "--log-every-n-steps": "1",
    "--save-frequency": "0",
}
"""Arguments of open_clip_train that a comparison sets where its user does not."""

EPOCHS, QUICK_EPOCHS = 20, 2
"""Epochs of a comparison, and of a quick one."""


def with_defaults(given: Sequence[str], *, quick: bool) -> list[str]:
    """Return the user's arguments with our defaults before them; argparse lets the last one win.

    Raises:
        InputError: an argument is given that a comparison sets itself.
    """
    for taken in ("--name", "--logs", "--seed", "--resume", "--val-data"):
        if any(argument == taken or argument.startswith(f"{taken}=") for argument in given):
            raise InputError(f"Expected arguments of open_clip_train without {taken}, which compare sets itself, got it.")
    defaults = [part for pair in DEFAULTS.items() for part in pair]
    return [*defaults, "--epochs", str(QUICK_EPOCHS if quick else EPOCHS), *given]


def value_of(line: Sequence[str], name: str, default: str = "") -> str:
    """Return the value of an option, the last one if it is given twice."""
    found = default
    for here, after in zip(line, [*line[1:], ""], strict=True):
        if here == name:
            found = after
        elif here.startswith(f"{name}="):
            found = here.partition("=")[2]
    return found


def resolve_data(
    line: list[str], output: Path, test_data: str | None, group_column: str | None
) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Return the arguments with the training data, and how training and test pairs are read.

    Raises:
        DataError: one of training and test data is given without the other.
    """
    train_data = value_of(line, "--train-data")
    if not train_data:
        if test_data is not None:
            raise DataError("Expected --train-data beside --test-data, got none. Give it after --.")
        train = catalogue.export(output / "data" / "train", split="train", format="csv") / "train.csv"
        test = catalogue.export(output / "data" / "test", split="test", format="csv") / "test.csv"
        line = [*line, "--train-data", str(train), "--dataset-type", "csv"]
        group_column = "item"
        train_data, test_data = str(train), str(test)
    if test_data is None:
        raise DataError("Expected --test-data beside --train-data, to measure on pairs that are not trained on, got none.")
    kind = value_of(line, "--dataset-type", "auto")
    reading: dict[str, Any] = {
        "dataset_type": kind,
        "separator": value_of(line, "--csv-separator", "\t"),
        "image_column": value_of(line, "--csv-img-key", "filepath"),
        "text_column": value_of(line, "--csv-caption-key", "title"),
        "group_column": group_column,
    }
    return line, {"location": train_data, **reading}, {"location": test_data, **reading}
