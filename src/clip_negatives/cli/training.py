"""The commands `train` and `compare`, which train with open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip_negatives.cli import early, parameters
from clip_negatives.cli.output import console, echo
from clip_negatives.compare.methods import HELD, QUICK_METHODS
from clip_negatives.compare.methods import METHODS as DEFAULT_METHODS
from clip_negatives.errors import InputError
from clip_negatives.host.method import NAMED

if TYPE_CHECKING:
    from clip_negatives.compare.run import Job

METHOD_HELP = """\b
Methods:
  in_batch           in-batch negatives: the baseline, always included
  in_batch@0.1       the same at a held temperature, always included
  random_reduction   removes random pairs: the control, always included
  default            the default sampler and weighting
  paper              the method of the paper
  SAMPLER            a sampler with uniform weights
  WEIGHTING          a weighting with in-batch sampling
  SAMPLER+WEIGHTING  both
Options: NAME:key=value,...  METHOD@0.1 fixes the temperature at 0.1.
"""
STDOUT = Path("-")
METHODS = parameters.PluginName("negative_sampler", "loss_weighting", is_list=True, extra_names=tuple(NAMED))


@parameters.command(
    "clip-negatives train -- --train-data train.csv --model ViT-B-32 --epochs 5",
    "clip-negatives train --weighting weighted_infonce:beta=2 -- \\\n    --train-data train.csv --model ViT-B-32",
    "torchrun --nproc-per-node 2 -m clip_negatives train --clusters clusters/ -- \\\n"
    "    --train-data train.csv --model ViT-B-32",
    cls=parameters.OptionsOnBothSides,
)
@click.option("--clusters", type=parameters.FOLDER, help="Clusters folder.  [default: prepare one and cache it]")
@parameters.sampler_option
@parameters.weighting_option
@click.option("--backend", default="auto", help="Backend of the loss: auto, torch, chunked or triton.")
@click.option("--temperature", type=float, help="Fixed temperature, 0.01 .. 1.  [default: learned]")
@click.option("--refresh-every", type=int, help="Re-cluster with the model every N epochs.  [default: never]")
@click.option("--resume-anyway", is_flag=True, help="Resume although data, clusters or settings differ from the run's.")
@parameters.column_options
@parameters.recipe_options
@click.argument("open_clip_arguments", nargs=-1, type=click.UNPROCESSED)
def train(open_clip_arguments: tuple[str, ...], **options: Any) -> None:
    """Train a CLIP model with open_clip.

    All other options go to open_clip_train. Our options and those of open_clip may
    stand in any order, before or after --. Encoder options are used only without
    --clusters. Clusterer options are used without --clusters, and with
    --refresh-every.
    """
    from clip_negatives.integrations import open_clip

    arguments = parameters.open_clip_arguments(open_clip_arguments, options["recipe"].columns)
    open_clip.train(arguments, open_clip.TrainOptions(**options))


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
    default=f"{HELD:g}",
    help="Temperature of in_batch at a held temperature. The best of several, such as 0.05,0.07,0.1,0.14, is chosen on "
    "validation pairs, held out of the training data.",
)
@click.option("--tune-lr", is_flag=True, help="Choose the learning rate of in_batch on validation pairs; all methods use it.")
@click.option("--output", default="compare", type=parameters.FOLDER, help="Folder for runs, results and plot.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Also write the result to this JSON file; - is stdout.",
)
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
    is_stdout = json_file == STDOUT
    if json_file is not None and not is_stdout:
        early.check_output_file(json_file)
    from clip_negatives.compare import compare as run_comparison
    from clip_negatives.compare import output as show
    from clip_negatives.report import write_comparison
    from clip_negatives.storage.output_file import write_json_output

    def announce(job: Job, number: int, total: int, state: str) -> None:
        echo(f"run {number + 1} of {total}: {job.name}, seed {job.seed}: {state}", err=True)

    text = console(stderr=is_stdout)
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
    for line_of_text in show.sentences(comparison):
        echo(line_of_text, err=is_stdout)
    text.print(show.results_table(comparison))
    echo(f"Report: {page}. Results: {output / 'results.json'}, {output / 'ranks.png'}", err=is_stdout)
    if is_stdout:
        echo(json.dumps(comparison.to_dict()))
    elif json_file is not None:
        write_json_output(json_file, json.loads((output / "results.json").read_text()))


def _numbers(text: str) -> list[float]:
    """Return the temperatures of a list separated by commas."""
    try:
        return [float(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise InputError(f"--temperatures must be numbers separated by commas, such as 0.05,0.1, got {text!r}.") from None
