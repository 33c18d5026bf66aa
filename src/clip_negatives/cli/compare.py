"""Compare methods with in-batch negatives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from clip_negatives.cli.words import CLUSTERER, FILE, PluginName, examples

if TYPE_CHECKING:
    from clip_negatives.compare.run import Job

METHODS = PluginName("negative_sampler", "loss_weighting", several=True, more=("default", "paper"))


@click.command(
    context_settings={"show_default": True},
    epilog=examples(
        "clip-negatives compare --quick",
        "clip-negatives compare --methods default,paper,in_batch+weighted_infonce:beta=2 --seeds 5",
        "clip-negatives compare --test-data test.csv --group-column product -- --train-data train.csv --model ViT-B-32",
    ),
)
@click.option("--quick", is_flag=True, help="Two epochs instead of twenty, two seeds: a look in a few minutes.")
@click.option("--methods", default="in_batch,default,paper", type=METHODS, help="Methods, separated by commas: see above.")
@click.option("--seeds", type=int, help="Runs of each method.  [default: 3; with --quick 2]")
@click.option("--output", default="compare", type=click.Path(path_type=Path), help="Folder for runs, results and plot.")
@click.option("--json", "json_file", type=FILE, help="Write the results to this file too.")
@click.option("--test-data", help="Test pairs (csv or tars), with --train-data of your own after --.")
@click.option("--group-column", help="Column that says which pairs show the same item.")
@click.option("--image-encoder", default="pixels", help="Encoder of the images that are clustered.")
@click.option("--text-encoder", default="tfidf", help="Encoder of the texts that are clustered.")
@click.option("--clusterer", default="kmeans", type=CLUSTERER, help="Clusterer, NAME or NAME:key=value,...")
@click.option("--text-clusterer", type=CLUSTERER, help="Another clusterer for the texts.")
@click.argument("open_clip_arguments", nargs=-1, type=click.UNPROCESSED)
def compare(open_clip_arguments: tuple[str, ...], output: Path, json_file: Path | None, **options: Any) -> None:
    """Train the same CLIP model under several choices of negatives and compare them with in-batch negatives.

    Without data of your own it runs on the emoji catalogue that ships with the package. A method is in_batch, default,
    paper, random_reduction, a sampler, a weighting, or SAMPLER+WEIGHTING, each with options: NAME:key=value,...
    METHOD@0.1 holds the temperature at 0.1 instead of learning it.

    Finished runs are kept: after Ctrl-C the same command goes on.
    """
    from clip_negatives.compare import compare as run
    from clip_negatives.compare import output as show

    # A terminal has its own width; a file or a pipe gets all columns.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    errors = Console(stderr=True)

    def announce(job: Job, number: int, total: int) -> None:
        errors.print(f"run {number + 1} of {total}: {job.method.name}, seed {job.seed}", highlight=False)

    try:
        comparison = run(output, arguments=open_clip_arguments, on_run=announce, **options)
    except KeyboardInterrupt:
        errors.print(f"Stopped. Finished runs are kept in {output}; the same command goes on after them.")
        raise SystemExit(130) from None
    console.print(show.ranks_table(comparison))
    console.print(show.cost_table(comparison))
    for suffix in ("png", "svg"):
        show.plot(comparison, output / f"ranks.{suffix}")
    from clip_negatives.report import write_comparison

    page = write_comparison(comparison, output)
    console.print(f"Results: {output / 'results.json'}, {output / 'ranks.png'}; to look at: {page}")
    if json_file is not None:
        from clip_negatives.atomic import replaced_file

        with replaced_file(json_file) as file:
            file.write_text((output / "results.json").read_text())
