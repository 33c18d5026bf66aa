"""The command `check`, which goes from data to an answer."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clip_negatives.cli import early, parameters
from clip_negatives.cli.clusters import clusters_and_data
from clip_negatives.cli.next_command import COLUMNS, MODEL, RECIPE, TRAIN_DATA, command_line, show_line, stream_options
from clip_negatives.cli.output import console, echo, is_stdout, write_json
from clip_negatives.host.method import NO_SAMPLER, Method
from clip_negatives.printing import printable
from clip_negatives.progress import stage

if TYPE_CHECKING:
    from rich.console import Console

    from clip_negatives.checking import CheckResult
    from clip_negatives.checking.rates import Rates
    from clip_negatives.pipelines.recipe import Recipe

DECIDED_CLUSTERS = "clusters-decided"  # folder of the next prepare


@parameters.command(
    "clip-negatives check train.csv",
    "clip-negatives check train.csv --group-column product --output check/",
    "clip-negatives check train.csv \\\n    --image-encoder efficientnet-lite0 --text-encoder minilm",
    "clip-negatives check train.csv --decided check/suspects.csv",
)
@click.argument("clusters", metavar="CLUSTERS_OR_DATA")
@click.option("--output", "-o", default="check", type=parameters.FOLDER, help="Folder of the report and of suspects.csv.")
@click.option(
    "--data",
    help="Data that the clusters were prepared from. Used in the printed train command, and to show images from tars.",
)
@click.option(
    "--no-choose",
    "choose",
    is_flag=True,
    flag_value=False,
    default=True,
    show_default=False,
    help="Skip the comparison of methods (the slowest part).",
)
@click.option("--suspects", default=200, type=click.IntRange(min=1), help="Maximum number of suspect pairs.")
@parameters.workers_option
@parameters.decided_option
@parameters.dataset_type_option
@parameters.column_options
@parameters.recipe_options
@parameters.json_option
def check(
    clusters: str,
    output: Path,
    data: str | None,
    choose: bool,
    suspects: int,
    workers: int,
    decided: Path | None,
    dataset_type: str,
    recipe: Recipe,
    json_file: Path | None,
) -> None:
    """Check your data: are there false negatives, and what to do about them?

    Encodes and clusters DATA (cached), counts false negatives, judges the features,
    compares methods on folds of the data, and lists suspect pairs. Prints the answer
    and the command to train with. The report, OUTPUT/index.html, shows suspect pairs
    and a map.
    """
    early.check_clusters_or_data(clusters, dataset_type)
    if data is not None:
        clustered = early.clustered_data(data, dataset_type, Path(clusters))
    if decided is not None:
        early.check_decided(decided)
    early.check_output_folder(output, "report")
    if json_file is not None:
        early.check_output_file(json_file)
    from clip_negatives.checking import check as check_clusters
    from clip_negatives.dataset import open_pairs
    from clip_negatives.report import write_check

    folder, source = clusters_and_data(clusters, dataset_type, recipe)
    if data is not None:
        source = open_pairs(clustered, recipe.columns, dataset_type=dataset_type)
    result = check_clusters(folder, decided=decided, choose=choose, suspects=suspects, workers=workers)
    is_data = early.is_data(clusters, dataset_type)
    lines = _next_lines(result, clusters if is_data else data, decided, options=RECIPE if is_data else ())
    with stage("Writing the report"):
        written = write_check(result, output, commands=lines, source=source)
    to = console(stderr=is_stdout(json_file))
    print_answers(result.answers(), to, result.verdict.rates)
    echo(f"Report: {written.page}", err=is_stdout(json_file))
    if written.suspects is not None:
        decide = 'write "same" or "different" into the column "decision"'
        run_again = f"then run the command again with --decided {shlex.quote(str(written.suspects))}"
        echo(f"Suspect pairs ({len(result.suspects)}): {decide}, {run_again}.", err=is_stdout(json_file))
    if written.missing:
        echo(f"{written.missing} images could not be read; the report shows the pairs without them.", err=True)
    write_json(json_file, {**result.to_dict(), "commands": lines})
    for line in lines:
        show_line(line)


def print_answers(answers: dict[str, list[str]], to: Console, rates: Rates | None = None) -> None:
    """Print the questions, each with the sentences that answer it, and the rates below the first."""
    from rich.padding import Padding
    from rich.text import Text

    for number, (question, sentences) in enumerate(answers.items()):
        to.print(Text(question, style="bold"))
        for sentence in sentences:
            to.print(Padding(Text(printable(sentence)), (0, 0, 0, 2), expand=False))
        if number == 0 and rates is not None:
            _print_rates(rates, to)


def _print_rates(rates: Rates, to: Console) -> None:
    """Print the table of false negatives by batch size."""
    from rich.box import SIMPLE_HEAD
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table("batch", box=SIMPLE_HEAD, pad_edge=False)
    for rate in rates.kinds:
        table.add_column(f"{rate.kind}{' (estimate)' * rate.is_estimate}", justify="right")
    table.add_column(rates.headline_column, justify="right")
    for size in rates.batch_sizes:
        table.add_row(f"{size:,}", *(f"{rate.per_anchor(size):.2f}" for rate in (*rates.kinds, rates.all)))
    to.print(Padding(table, (0, 0, 0, 2), expand=False))
    if rates.left_out:
        sizes = ", ".join(f"{size:,}" for size in rates.left_out)
        left_out = f"Left out, because there are only {rates.n_samples:,} samples: batches of {sizes}."
        to.print(Padding(Text(left_out), (0, 0, 0, 2), expand=False))


def _next_lines(result: CheckResult, known_data: str | None, decided: Path | None, options: tuple[str, ...]) -> list[str]:
    """Return the commands to run next: to train, after preparing clusters with the decisions, if there are any."""
    data = known_data or TRAIN_DATA
    folder: Path | str = result.folder.path
    lines = []
    is_of_tars = "shard" in result.folder.samples.column_names  # whose groups `prepare` cannot change
    if decided is not None and not is_of_tars:
        folder = DECIDED_CLUSTERS
        lines.append(command_line("prepare", data, folder, "--decided", decided, options=("dataset_type", *COLUMNS, *options)))
    after = ("--train-data", data, *MODEL, *stream_options(result.folder))
    method = Method.parse(result.advice.method)
    if is_of_tars:  # a stream has its own order
        method = replace(method, sampler=NO_SAMPLER)
    lines.append(command_line("train", "--clusters", folder, "--method", str(method), options=COLUMNS, after=after))
    return lines
