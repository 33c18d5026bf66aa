"""Checks of open_clip's arguments, for settings that would fail late or train the wrong loss."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import open_clip
import open_clip_train.main
import torch

from clip_negatives.advice import argument
from clip_negatives.dataset.urls import check_shards, expand_urls
from clip_negatives.encoders.open_clip import MODELS, SCHEMES
from clip_negatives.errors import DataError, InputError, MissingPackageError, UnknownNameError, UnsupportedError
from clip_negatives.host.option_checks import check_choice
from clip_negatives.integrations.open_clip.adapter import installed
from clip_negatives.integrations.open_clip.arguments import kind_of, parsed
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.open_clip.train_set import check_environment, check_validation, steps_of_epoch, world_size

LEAST = {"seed": 0, "batch_size": 1, "epochs": 0, "accum_freq": 1, "workers": 0, "warmup": 0, "log_every_n_steps": 1}


def check_arguments(arguments: Sequence[str], options: TrainOptions) -> Namespace:
    """Return open_clip's arguments; reject settings that would fail late or train the wrong loss. See also `check_paths`."""
    args = parsed(arguments)
    check_environment(args.dist_url)
    _check_loss(args, options)
    _check_model(args)
    _check_numbers(args)
    _check_values(args)
    _check_data(args, options)
    return args


def _check_loss(args: Namespace, options: TrainOptions) -> None:
    """Check that the run trains with CLIP's or SigLIP's loss, which our loss can replace."""
    _, weighting = options.plugins
    if weighting.requires_logit_bias and not args.siglip:
        raise InputError(f"The weighting {weighting.name} needs a logit bias. Add --siglip.")
    other_losses = {
        "--distill-model": args.distill_model is not None,
        f"--siglip with the weighting {weighting.name}": args.siglip and not weighting.requires_logit_bias,
        f"--model {args.model} (CoCa)": "coca" in args.model.lower(),
    }
    given = [(option, "the weights fit only the contrastive loss of CLIP") for option in other_losses if other_losses[option]]
    for option, reason in (*given, *installed().unsupported(args)):
        raise UnsupportedError(f"{option} is not supported: {reason}. Leave it out, or train with open_clip_train itself.")


def _check_model(args: Namespace) -> None:
    """Add our small models to open_clip, then check the names of the model and its weights."""
    open_clip.add_model_config(MODELS)
    if args.model.startswith(SCHEMES):
        return
    if args.model not in open_clip.list_models():
        raise InputError(str(UnknownNameError.of("model of open_clip, after --model", args.model, open_clip.list_models())))
    tags = open_clip.list_pretrained_tags_by_model(args.model)
    if args.pretrained and args.pretrained not in tags and not Path(args.pretrained).is_file():
        choices = f"one of {', '.join(tags)}" if tags else "this model has no tags"
        raise InputError(
            f"--pretrained must be a checkpoint file or a tag of {args.model} ({choices}), got {args.pretrained!r}."
        )


def _check_numbers(args: Namespace) -> None:
    """Reject numbers that make open_clip stop with a traceback, sometimes after it has written files."""
    for name, least in LEAST.items():
        if getattr(args, name) < least:
            raise InputError(f"{_option(name)} must be at least {least}, got {getattr(args, name)}.")
    if args.seed + world_size() > 2**32:
        raise InputError(f"--seed must be below 2^32 on every process, got {args.seed}.")
    for name, value in vars(args).items():
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise InputError(f"{_option(name)} must be a finite number, got {value}.")
    if args.batch_size * args.accum_freq * world_size() == 1:
        raise InputError("--batch-size 1 on one process has no incorrect pair and teaches nothing. Use a larger --batch-size.")


def _check_values(args: Namespace) -> None:
    """Reject names and files that make open_clip stop with a traceback after it has written files."""
    check_choice("--lr-scheduler", args.lr_scheduler, ("cosine", "const", "const-cooldown"))
    if args.lr_scheduler == "const-cooldown" and args.epochs_cooldown is None:
        raise InputError("--lr-scheduler const-cooldown needs the number of cooldown epochs. Add --epochs-cooldown.")
    for name in ("wandb", "trackio", "tensorboard"):
        is_given = name in args.report_to or ("all" in args.report_to and name != "trackio")
        if is_given and getattr(open_clip_train.main, name, True) is None:
            raise MissingPackageError(f"--report-to {args.report_to} needs {name}. Install it: pip install {name}.")
    try:
        torch.device(args.device)
    except RuntimeError as error:
        raise InputError(f"--device must name a device of torch, such as cpu or cuda, got {args.device!r}.") from error


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_data(args: Namespace, options: TrainOptions) -> None:
    """Check that there are enough training data for a step, and readable validation data."""
    if args.dataset_type != "synthetic" and not args.train_data:
        raise DataError("There is no training data. Add --train-data FILE, or --dataset-type synthetic.")
    if args.dataset_type == "synthetic" and not args.train_num_samples:
        raise DataError("Synthetic data needs a size. Add --train-num-samples.")
    if options.refresh_every is not None and (kind := kind_of(args)) != "table":
        raise InputError(
            f"{argument('refresh_every')} needs a table, not {kind} data, to encode every sample again. Leave it out."
        )
    steps = steps_of_epoch(args)
    for data in filter(None, (args.train_data, args.val_data)):
        if kind_of(args, data) == "webdataset":
            check_shards([shard for shard in expand_urls(data) if shard not in options.known_missing])
    check_validation(args)
    if args.accum_freq > steps:
        raise DataError(
            f"--accum-freq {args.accum_freq} is more than the {steps} batches of an epoch, so the model would not be trained. "
            "Use a smaller --accum-freq or a smaller --batch-size."
        )
