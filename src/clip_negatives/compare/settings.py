"""The settings that all runs of a comparison train with, and where each of them comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clip_negatives.compare.arguments import TINY, TINY_SETTINGS
from clip_negatives.integrations.open_clip.arguments import parsed

# Two different values of each setting that matters: if the user sets it, both give the same result.
PROBES = {
    **dict.fromkeys(("model", "pretrained", "opt", "lr_scheduler"), ("a", "b")),
    **dict.fromkeys(("batch_size", "accum_freq", "epochs", "lr", "warmup", "wd", "workers"), ("1", "2")),
    "precision": ("fp32", "fp16"),
}
ALWAYS = (
    "model",
    "batch_size",
    "epochs",
    "lr",
    "warmup",
    "wd",
    "precision",
    "workers",
)  # the others only if the user sets them


class Setting(NamedTuple):
    """A setting of all runs: open_clip's option, its value and its source."""

    option: str
    value: str
    source: str


def effective(line: Sequence[str], given: Sequence[str], *, quick: bool = False, tuned: Sequence[str] = ()) -> list[Setting]:
    """Return the settings of all runs.

    Args:
        line: all arguments of open_clip, defaults first; see `clip_negatives.compare.arguments.with_defaults`.
        given: the arguments of the user.
        quick: whether ``--quick`` sets the epochs.
        tuned: names of the settings that were tuned.
    """
    args, settings = parsed(line), []
    for name in PROBES:
        option, is_given = f"--{name.replace('_', '-')}", is_set(name, given)
        if name in tuned:
            source = "tuned on validation pairs"
        elif is_given:
            source = "yours"
        elif name == "epochs" and quick:
            source = "--quick"
        elif name == "model":
            source = "our default"
        else:
            source = f"ours for {TINY}" if args.model == TINY and option in TINY_SETTINGS.split() else "open_clip's default"
        if name in ALWAYS or is_given:
            value = getattr(args, name)
            settings.append(Setting(option, f"{value:g}" if isinstance(value, float) else str(value), source))
    return [*settings, Setting("temperature", "learned, or METHOD@0.1", "the method")]


def is_set(name: str, arguments: Sequence[str]) -> bool:
    """Return whether the arguments set an argument of `PROBES`, perhaps to its default."""
    option = f"--{name.replace('_', '-')}"
    first, second = (getattr(parsed([option, probe, *arguments]), name) for probe in PROBES[name])
    return bool(first == second)
