"""open_clip's command line: parsed with its own parser, and refused where a run would fail late or train something else."""

from __future__ import annotations

import contextlib
import io
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import open_clip
from open_clip_train.params import parse_args

from clip_negatives import registry
from clip_negatives.encoders.open_clip import MODELS, SCHEMES
from clip_negatives.errors import DataError, InputError, UnknownNameError, UnsupportedError
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.open_clip.train_set import kind_of, rank, steps_of_epoch

SOURCE_OF_RESUMED = "latest"
"""What ``--resume`` takes beside a file."""


def check_arguments(arguments: Sequence[str], options: TrainOptions) -> Namespace:
    """Parse open_clip's command line and refuse what could not be trained, or would train something else than was meant.

    Raises:
        UnsupportedError: the arguments ask for a loss or a trainer that our loss does not stand for.
        DataError: there are no training data, or they cannot be used as given.
        InputError: open_clip's parser refuses, the run's name is taken, a value is out of its range or names what is not
            there, or an option needs other data.
    """
    args = parsed(arguments)
    _check_loss(args, options)
    _check_model(args)
    _check_values(args)
    if args.dataset_type != "synthetic" and not args.train_data:
        raise DataError("Expected --train-data FILE or --dataset-type synthetic after --, got neither.")
    if args.dataset_type == "synthetic" and not args.train_num_samples:
        raise DataError("Expected --train-num-samples beside --dataset-type synthetic, got none.")
    kind = kind_of(args)
    if options.refresh_every is not None and kind != "csv":
        raise InputError(f"Expected csv data for --refresh-every, which encodes every sample again, got {kind} data.")
    steps = steps_of_epoch(args)
    if args.accum_freq > steps:
        raise DataError(
            f"Expected at least {args.accum_freq} batches an epoch for --accum-freq {args.accum_freq}, got {steps}: the model "
            "would not be trained. Use a smaller one, or a smaller --batch-size."
        )
    if args.name and args.resume != SOURCE_OF_RESUMED and rank() == 0 and (Path(args.logs) / args.name / "out.log").exists():
        raise InputError(
            f"Expected a new name for the run, got {args.name}, which {args.logs} holds. Say --resume latest or another --name."
        )
    return args


def parsed(arguments: Sequence[str]) -> Namespace:
    """Return what open_clip's own parser makes of the arguments; ``--help`` is shown and ends the program.

    Raises:
        InputError: it refuses them.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            args: Namespace = parse_args(list(arguments))
    except SystemExit as stopped:
        if not stopped.code:
            raise
        fault = told.getvalue().strip().rpartition("error: ")[2]
        raise InputError(
            f"Expected arguments of open_clip_train after --, got: {fault}. They are listed by: clip-negatives train -- --help"
        ) from None
    return args


def _check_loss(args: Namespace, options: TrainOptions) -> None:
    """Refuse losses and trainers that our loss does not stand for."""
    item, _ = registry.default_registry().resolve("loss_weighting", options.weighting)
    if item.requires_logit_bias and not args.siglip:
        raise InputError(f"Expected --siglip after -- for weighting {item.name}, which needs a logit bias, got none. Add it.")
    for asked, what in (
        (args.distill_model is not None, "--distill-model"),
        (args.siglip and not item.requires_logit_bias, f"--siglip with weighting {item.name}"),
        ("coca" in args.model.lower(), f"--model {args.model} (CoCa)"),
        (args.horovod, "--horovod"),
    ):
        if asked:
            raise UnsupportedError(
                f"Expected training with the contrastive loss of CLIP, got {what}, whose loss our weights are not defined "
                "for. Leave it out, or train with open_clip_train itself."
            )


def _check_model(args: Namespace) -> None:
    """Refuse names of models and of weights that open_clip does not know."""
    open_clip.add_model_config(MODELS)
    if args.model.startswith(SCHEMES):
        return
    if args.model not in open_clip.list_models():
        raise InputError(str(UnknownNameError.of("model of open_clip, after --model", args.model, open_clip.list_models())))
    known = open_clip.list_pretrained_tags_by_model(args.model)
    if args.pretrained and args.pretrained not in known and not Path(args.pretrained).is_file():
        tags = f"one of {', '.join(known)}" if known else "it has no known tags"
        raise InputError(
            f"Expected --pretrained with a checkpoint file or a tag of {args.model} ({tags}), got {args.pretrained!r}."
        )


def _check_values(args: Namespace) -> None:
    """Refuse values on which open_clip would stop with a traceback, some of them after it has written."""
    if args.seed < 0:
        raise InputError(f"Expected --seed of at least 0, got {args.seed}.")
    for name, least in (("batch_size", 1), ("epochs", 0), ("accum_freq", 1), ("workers", 0)):
        if getattr(args, name) < least:
            raise InputError(f"Expected --{name.replace('_', '-')} of at least {least}, got {getattr(args, name)}.")
    if args.resume and args.resume != SOURCE_OF_RESUMED and "://" not in args.resume and not Path(args.resume).is_file():
        raise InputError(f"Expected --resume with a checkpoint or latest, got {args.resume}, which is not there.")
    if args.val_data and kind_of(args) == "csv" and not Path(args.val_data).is_file():
        raise DataError(f"Expected a csv file after --val-data, got {args.val_data}, which is not there.")
    there = next(folder for folder in (Path(args.logs).absolute(), *Path(args.logs).absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"Expected --logs with a folder that can be written, got {args.logs}: {there} cannot be.")
