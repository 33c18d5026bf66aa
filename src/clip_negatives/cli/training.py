"""The commands `train` and `compare`, which train with open_clip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from clip_negatives.cli import early, parameters
from clip_negatives.cli.next_command import COLUMNS, RECIPE, TEST_DATA, TRAIN_DATA, same_command, show_next, without_options
from clip_negatives.cli.output import console, echo, is_stdout, write_json
from clip_negatives.compare.methods import CONTROL, FIXED_TEMPERATURE, QUICK_METHODS
from clip_negatives.compare.methods import METHODS as DEFAULT_METHODS
from clip_negatives.errors import InputError
from clip_negatives.host.method import NAMED, Method
from clip_negatives.progress import current, duration

if TYPE_CHECKING:
    from clip_negatives.compare.run import Job

METHOD_HELP = """\b
Methods:
  in_batch           in-batch negatives: the baseline, always included
  in_batch@0.1       the same at a fixed temperature, always included
  random_reduction   removes random pairs: the control, always included
  default            the default sampler and weighting
  paper              the method of the paper
  SAMPLER            a sampler with uniform weights
  WEIGHTING          a weighting with in-batch sampling
  SAMPLER+WEIGHTING  both
Options: NAME:key=value,...  METHOD@0.1 trains at a fixed temperature of 0.1.
"""
CHOSEN = "chosen"  # value of --method
METHOD = parameters.PluginName("negative_sampler", "loss_weighting", extra_names=(*NAMED, CHOSEN))
METHODS = parameters.PluginName("negative_sampler", "loss_weighting", is_list=True, extra_names=tuple(NAMED))


@parameters.command(
    "clip-negatives train -- --train-data train.csv --model ViT-B-32 --epochs 5",
    "clip-negatives train --weighting weighted_infonce:beta=2 -- \\\n    --train-data train.csv --model ViT-B-32",
    "torchrun --nproc-per-node 2 -m clip_negatives train --clusters clusters/ -- \\\n"
    "    --train-data train.csv --model ViT-B-32",
    cls=parameters.OptionsOnBothSides,
)
@click.option("--clusters", type=parameters.FOLDER, help="Clusters folder.  [default: prepare one and cache it]")
@click.option("--method", type=METHOD, help="Method, such as default@0.1, or chosen: the one of choose.  [default: default]")
@parameters.sampler_option
@parameters.weighting_option
@click.option("--backend", default="auto", help="Backend of the loss: auto, torch, chunked or triton.")
@click.option("--temperature", type=float, help="Fixed temperature, 0.01 .. 1.  [default: learned]")
@click.option("--refresh-every", type=int, help="Re-cluster with the model every N epochs.  [default: never]")
@click.option("--teacher", help="Checkpoint of the same model, whose features weightings such as distilled use.")
@click.option("--ema", type=float, help="Use the moving average of the model as the teacher, with this decay, such as 0.999.")
@click.option("--resume-anyway", is_flag=True, help="Resume although data, clusters or settings differ from the run's.")
@parameters.column_options
@parameters.recipe_options
@click.argument("open_clip_arguments", nargs=-1, type=click.UNPROCESSED)
def train(open_clip_arguments: tuple[str, ...], method: str | None, **options: Any) -> None:
    """Train a CLIP model with open_clip.

    All other options go to open_clip_train. Our options and those of open_clip may
    stand in any order, before or after --. Encoder options are used only without
    --clusters. Clusterer options are used without --clusters, and with
    --refresh-every.
    """
    if method is not None:
        options |= _parts(method, options["clusters"])
    from clip_negatives.integrations import open_clip

    arguments = parameters.open_clip_arguments(open_clip_arguments, options["recipe"].columns)
    run = open_clip.train(arguments, open_clip.TrainOptions(**options))
    if run is not None and os.environ.get("RANK", "0") == "0":
        _write_card(run, arguments, same_command(open_clip_arguments))
    _show_comparison(open_clip_arguments)


def _write_card(run: Path, arguments: Sequence[str], command: str) -> None:
    """Write the result card of a training run; `arguments` are those of open_clip."""
    from clip_negatives.integrations.open_clip.arguments import parsed
    from clip_negatives.integrations.open_clip.train_set import number_of_pairs
    from clip_negatives.report import write_training_card

    args = parsed(arguments)
    data = {"train_data": args.train_data, "n_train": number_of_pairs(args), "val_data": args.val_data}
    if (card := write_training_card(run, command, **data)) is not None:
        echo(f"Result card: {card}", err=True)


def _parts(text: str, clusters: Path | None) -> dict[str, Any]:
    """Return sampler, weighting and temperature of the value of --method."""
    context = click.get_current_context()
    names = "sampler", "weighting", "temperature"
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise InputError(f"--method names sampler, weighting and temperature. Omit --{given[0]}, or omit --method.")
    method = _chosen(text, clusters) if text == CHOSEN or text.endswith(".json") else Method.parse(text)
    return {name: getattr(method, name) for name in names}


def _chosen(text: str, clusters: Path | None) -> Method:
    """Return the method of a choice: the one in the clusters folder, or a file."""
    if clusters is None:
        raise InputError(f"--method {text} needs the clusters that the method was chosen for. Name them with --clusters.")
    early.check_clusters(clusters)
    from clip_negatives.choosing.choice import FILE, FOLDER, method_for
    from clip_negatives.storage.manifest import CLUSTERS_FOLDER

    file = clusters / FOLDER / FILE if text == CHOSEN else Path(text)
    method = method_for(file, CLUSTERS_FOLDER.read_manifest(clusters))
    echo(f"Method: {method}, chosen in {file}", err=True)
    return method


def _show_comparison(arguments: tuple[str, ...]) -> None:
    """Print the command that compares the method of `train` with in-batch negatives, on rank 0."""
    from clip_negatives.compare.arguments import RESERVED
    from clip_negatives.integrations.open_clip.arguments import parsed

    args = parsed(arguments)
    if args.train_data and os.environ.get("RANK", "0") == "0":
        names = [f"--{name.replace('_', '-')}" for name in RESERVED]
        test_data = "--test-data", args.val_data or TEST_DATA
        show_next("compare", *test_data, options=(*COLUMNS, *RECIPE), after=without_options(arguments, names))


@parameters.command(
    "clip-negatives compare --quick",
    "clip-negatives compare --seeds 5 \\\n    --methods default,paper,in_batch+weighted_infonce:beta=2,default@0.1",
    "clip-negatives compare --test-data test.csv --group-column product -- \\\n    --train-data train.csv --model ViT-B-32",
    notes=METHOD_HELP,
    cls=parameters.OptionsOnBothSides,
)
@click.option("--quick", is_flag=True, help="1 epoch and 2 seeds: a first result in minutes.")
@click.option(
    "--methods",
    type=METHODS,
    help=f"Methods, separated by commas; see below.  [default: {DEFAULT_METHODS}; with --quick {QUICK_METHODS}]",
)
@click.option("--seeds", type=int, help="Runs per method.  [default: 3; with --quick 2]")
@click.option(
    "--temperatures",
    default=f"{FIXED_TEMPERATURE:g}",
    help="Fixed temperature of the second baseline, in_batch@T. With several values, such as 0.05,0.07,0.1,0.14, the best on "
    "validation pairs (10 % of the training data, at most 2,000) is used.",
)
@click.option("--tune-lr", is_flag=True, help="Choose the learning rate of in_batch on validation pairs; all methods use it.")
@click.option("--output", default="compare", type=parameters.FOLDER, help="Folder for runs, results and plot.")
@parameters.json_option
@click.option("--test-data", help="Test pairs, csv or tars; required with --train-data.")
@parameters.column_options
@parameters.recipe_options
@click.argument("open_clip_arguments", nargs=-1, type=click.UNPROCESSED)
def compare(
    open_clip_arguments: tuple[str, ...], output: Path, json_file: Path | None, temperatures: str, **options: Any
) -> None:
    """Compare methods against in-batch negatives.

    Trains the same CLIP model with every method and seed, and reports whether a
    method differs from in-batch negatives. Without --train-data, the data are the
    emoji catalogue. All other options go to open_clip_train. Our options and those of
    open_clip may stand in any order, before or after --. To continue after an
    interruption, run the same command again: finished runs are reused.
    """
    from clip_negatives.compare.arguments import check_paths, with_defaults
    from clip_negatives.compare.settings import effective

    arguments = parameters.open_clip_arguments(open_clip_arguments, options["recipe"].columns)
    line = with_defaults(arguments, quick=options["quick"])
    check_paths(line, output, options["test_data"])
    if json_file is not None:
        early.check_output_file(json_file)
    from clip_negatives.compare import compare as run_comparison
    from clip_negatives.compare import output as show
    from clip_negatives.integrations.open_clip.arguments import parsed
    from clip_negatives.report import write_comparison, write_comparison_card

    def announce(job: Job, number: int, total: int, state: str) -> None:
        left = current().seconds_left()
        estimate = "" if left is None else f", about {duration(left)} left"
        echo(f"run {number + 1} of {total}: {job.name}, seed {job.seed}: {state}{estimate}", err=True)

    text = console(stderr=is_stdout(json_file))
    text.print(show.settings_table(effective(line, arguments, quick=options["quick"])))
    try:
        comparison = run_comparison(
            output, arguments=arguments, on_run=announce, temperatures=_numbers(temperatures), **options
        )
    except KeyboardInterrupt:
        echo(f"Stopped. Finished runs are kept in {output}. Run the same command again to continue.", err=True)
        raise SystemExit(130) from None
    for suffix in ("png", "svg"):
        show.plot(comparison, output / f"ranks.{suffix}")
    page = write_comparison(comparison, output)
    write_comparison_card(comparison, output, same_command(open_clip_arguments))
    for sentence in show.sentences(comparison):
        text.print(sentence)
    text.print(show.results_table(comparison))
    echo(f"Report: {page}. Results: {output / 'results.json'}, {output / 'ranks.png'}", err=is_stdout(json_file))
    write_json(json_file, comparison.to_dict())
    better = [name for name, gain in comparison.gains.items() if gain.sign > 0 and name != CONTROL]
    if better:
        best = max(better, key=lambda name: comparison.gains[name].estimate)
        train_data = () if parsed(arguments).train_data else ("--train-data", TRAIN_DATA)
        show_next("train", "--method", best, options=(*COLUMNS, *RECIPE), after=(*open_clip_arguments, *train_data))


def _numbers(text: str) -> list[float]:
    """Return the temperatures of a list separated by commas."""
    try:
        return [float(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise InputError(f"--temperatures must be numbers separated by commas, such as 0.05,0.1, got {text!r}.") from None
