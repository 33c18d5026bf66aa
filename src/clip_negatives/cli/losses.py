"""Options for lost samples and missing tars, and the summary of them that `prepare` prints."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from clip_negatives.cli.output import echo
from clip_negatives.dataset.missing import MissingLimit
from clip_negatives.errors import InputError
from clip_negatives.storage.limits import MAX_LOST

CAUSES_SHOWN = 5  # number of causes of skipped samples that are printed, the most frequent first; also of torn and missing tars
BROKEN = "broken.parquet"


class Share(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Type of a share, such as 1% or 0.01."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share as a number from 0 to 1."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is not a share. Write for example 1% or 0.01.", param, ctx)
        return share


class ShardCount(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Type of a number of tars, or a percentage of all tars, such as 3 or 1%."""

    name = "shards"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, after a check."""
        text = str(value).strip()
        try:
            MissingLimit(text)
        except InputError:
            self.fail(f"{text!r} is not a number of tars. Write for example 3 or 1%.", param, ctx)
        return text


max_lost_option = click.option(
    "--max-lost",
    default=f"{MAX_LOST:.0%}",
    type=Share(),
    help="Largest share of samples that may be lost: unreadable, or in torn tars.",
)
max_missing_option = click.option(
    "--max-missing-shards",
    default="0",
    type=ShardCount(),
    metavar="N|P%",
    help="Largest number or percentage of tars that may be missing or unreachable.",
)


def print_losses(manifest: Mapping[str, Any], output: Path) -> None:
    """Print what a clusters folder lacks: skipped samples, torn tars and missing tars."""
    from clip_negatives.storage.manifest import MANIFEST, MISSING_SHARDS

    if manifest["n_broken"] or manifest["n_torn"]:
        _print_skipped(output)
    if missing := manifest.get(MISSING_SHARDS):
        n = f"{len(missing)} tar{'s' * (len(missing) > 1)}"
        echo(f"Missing: {n}, listed in {output / MANIFEST}. The same command reads them once they are there.", err=True)


def _print_skipped(output: Path) -> None:
    """Print the skipped samples, with number and first key for each cause, then the torn tars."""
    import pandas as pd

    table, file = pd.read_parquet(output / BROKEN), output / BROKEN
    is_torn = table["key"] == table["shard"]
    broken, torn = table[~is_torn], table[is_torn]
    if len(broken):
        echo(f"Left out: {len(broken)} sample{'s' * (len(broken) > 1)}, listed in {file}", err=True)
    causes = broken.groupby("reason", sort=False)["key"].agg(["size", "first"]).sort_values("size", ascending=False)
    for reason, (count, key) in itertools.islice(causes.iterrows(), CAUSES_SHOWN):
        echo(f"  {count}: {reason} (first: {key})", err=True)
    if (rest := len(causes) - CAUSES_SHOWN) > 0:
        echo(f"  and {rest} other causes", err=True)
    if len(torn):
        n = f"{len(torn)} tar{'s' * (len(torn) > 1)}"
        echo(f"Torn: {n}, listed in {file}. The same command reads only the torn tars again.", err=True)
    for tar, reason in zip(torn["key"][:CAUSES_SHOWN], torn["reason"], strict=False):
        echo(f"  {tar}: {reason}", err=True)
    if (rest := len(torn) - CAUSES_SHOWN) > 0:
        echo(f"  and {rest} more", err=True)
