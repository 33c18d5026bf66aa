"""A whole comparison: data, clusters, all runs, statistics; what is finished is kept and not run again."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clip_negatives import registry
from clip_negatives.artifacts import ClustersFolder
from clip_negatives.atomic import replaced_file
from clip_negatives.compare.arguments import resolve_data, value_of, with_defaults
from clip_negatives.compare.methods import BASELINE, Method, parse_methods
from clip_negatives.compare.run import Job, check_methods, run
from clip_negatives.compare.statistics import Difference, Summary, paired_difference, summarise
from clip_negatives.dataset import open_pairs
from clip_negatives.encoders import encoder_name
from clip_negatives.errors import InputError
from clip_negatives.prepare import prepare_cached
from clip_negatives.reading import read_json

FIGURES = (
    *(f"{direction}_rank_{k}" for direction in ("text_to_image", "image_to_text") for k in (1, 5, 10)),
    "seconds_per_step",
    "peak_memory_mib",
    "false_negatives_per_anchor",
    "false_negatives_kept_per_anchor",
    "false_weight",
    "removed_share",
)
"""Fields of a run that are summarised over seeds."""

UNKNOWN = {"seconds_per_step", "false_negatives_kept_per_anchor", "false_weight", "removed_share"}
"""Those of them that may be None."""

SHOWN = ("seed", "steps", "queries", *(f"chance_rank_{k}" for k in (1, 5, 10)))
"""Other fields of a run that are numbers."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Hold the outcome.

    Attributes:
        setting: what was run, on what, with which versions.
        runs: what each run measured, by method and seed.
        summaries: mean and spread of each figure, by method.
        differences: paired difference of each figure to the baseline, by method.
    """

    setting: dict[str, Any]
    runs: list[dict[str, Any]]
    summaries: dict[str, dict[str, Summary]]
    differences: dict[str, dict[str, Difference]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self)


def compare(
    output: str | Path,
    *,
    methods: str = "in_batch,default,paper",
    seeds: int | None = None,
    quick: bool = False,
    test_data: str | None = None,
    group_column: str | None = None,
    image_encoder: str = "pixels",
    text_encoder: str = "tfidf",
    clusterer: str = "kmeans",
    text_clusterer: str | None = None,
    arguments: Sequence[str] = (),
    on_run: Callable[[Job, int, int], None] | None = None,
) -> Comparison:
    """Train every method with every seed and compare.

    All runs of a seed share model, initial weights, data, augmentation and number of steps, and go through open_clip's own
    training. Finished runs are kept in `output`; the same call goes on after them.

    Args:
        output: folder for runs and results.
        methods: see `clip_negatives.compare.parse_methods`; baseline and control are always among them.
        seeds: runs of each method, with seeds 0, 1, ...; None is 3, or 2 if quick.
        quick: train for two epochs instead of twenty.
        test_data: csv or tars of the test pairs, needed with own ``--train-data``; the shipped catalogue has its own.
        group_column: column that says which pairs show the same item; without it, equal texts do.
        image_encoder: encoder of the images that are clustered.
        text_encoder: encoder of the texts that are clustered.
        clusterer: clusterer of both.
        text_clusterer: another one for the texts.
        arguments: more of open_clip_train's command line.
        on_run: called before each run with its job, its number and the number of runs.

    Raises:
        ClipNegativesError: something is not as expected, or a run failed; finished runs are kept.
    """
    seeds = (2 if quick else 3) if seeds is None else seeds
    if seeds < 1:
        raise InputError(f"Expected at least 1 seed, got {seeds}.")
    output = Path(output).absolute()
    chosen = parse_methods(methods)
    line = with_defaults(arguments, quick=quick)
    _check_recipe(image_encoder, text_encoder, clusterer, text_clusterer or clusterer)
    line, train, test = resolve_data(line, output, test_data, group_column)
    len(open_pairs(**test))  # which refuses what is not there or cannot be read
    check_methods(chosen, line, None)
    started = time.perf_counter()
    folder = prepare_cached(
        open_pairs(**train),
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        clusterer=clusterer,
        text_clusterer=text_clusterer,
    )
    prepared = time.perf_counter() - started
    check_methods(chosen, line, folder.path)
    jobs = [
        Job(method, seed, tuple(line), value_of(line, "--model"), folder.path, test, run_folder(output, method.name, seed))
        for seed in range(seeds)
        for method in chosen
    ]
    runs = []
    for number, job in enumerate(jobs):
        if on_run is not None:
            on_run(job, number, len(jobs))
        runs.append(_kept(job, folder) or _keep(job, folder, run(job)))
    setting = {
        "arguments": line,
        "seeds": seeds,
        "n_train": folder.clusters.n_samples,
        "prepare_seconds": prepared,
        "test": test,
        "clusters": {key: value for key, value in folder.manifest.items() if key != "files"},
        "versions": _versions(),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    comparison = _summarise(setting, runs, chosen)
    with replaced_file(output / "results.json") as file:
        file.write_text(json.dumps(comparison.to_dict(), indent=2) + "\n")
    return comparison


def _check_recipe(image_encoder: str, text_encoder: str, *clusterers: str) -> None:
    """Refuse names and options of encoders and clusterers before anything is written."""
    encoder_name("image", image_encoder)
    encoder_name("text", text_encoder)
    for clusterer in clusterers:
        registry.create("clusterer", clusterer)


def _known(figures: dict[str, list[Any]]) -> dict[str, list[float]]:
    """Return the figures that every run measured: what a weighting removes is not known where it decides at each step."""
    return {figure: given for figure, given in figures.items() if None not in given}


def _summarise(setting: dict[str, Any], runs: list[dict[str, Any]], methods: Sequence[Method]) -> Comparison:
    values = {
        method.name: {figure: [one[figure] for one in runs if one["method"]["name"] == method.name] for figure in FIGURES}
        for method in methods
    }
    summaries = {
        name: {figure: summarise(given) for figure, given in _known(figures).items()} for name, figures in values.items()
    }
    differences = {
        name: {figure: paired_difference(given, values[BASELINE][figure]) for figure, given in _known(figures).items()}
        for name, figures in values.items()
        if name != BASELINE
    }
    return Comparison(setting, runs, summaries, differences)


def run_folder(output: Path, method: str, seed: int) -> Path:
    """Return where a comparison in `output` keeps the run of a method, by its name, with a seed."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in method)
    return output / "runs" / f"{safe}-{hashlib.sha256(method.encode()).hexdigest()[:6]}-seed-{seed}"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("clip-negatives", "open_clip_torch", "torch", "faiss-cpu")}


def _identity(job: Job, folder: ClustersFolder) -> str:
    """Return a digest of all that a run's outcome depends on, and of what is measured."""
    parts = [asdict(job.method), job.seed, job.arguments, job.test, folder.manifest["data"], _versions(), FIGURES]
    made_by = ("image_encoder", "text_encoder", "clusterer", "text_clusterer", "seed")
    parts.append({name: folder.manifest[name] for name in made_by})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kept(job: Job, folder: ClustersFolder) -> dict[str, Any] | None:
    """Return the outcome of an earlier, equal run, or None."""
    return read_run(job.folder / "result.json", _identity(job, folder))


def read_run(file: Path, identity: str) -> dict[str, Any] | None:
    """Return the outcome of the run with this identity, or None where the file is not there, of another run, or damaged."""
    try:
        stored = read_json(file, "json_bytes")
    except (OSError, ValueError):
        return None
    run = stored.get("run")
    return run if stored.get("identity") == identity and isinstance(run, dict) and _is_outcome(run) else None


def _is_outcome(run: dict[str, Any]) -> bool:
    """Tell whether a run has every field that is summarised or shown, each of its kind."""
    method, losses = run.get("method"), run.get("losses")
    return (
        isinstance(method, dict)
        and all(isinstance(method.get(name), str) for name in ("name", "sampler", "weighting"))
        and (method.get("temperature", "") is None or _is_number(method.get("temperature")))
        and isinstance(losses, list)
        and all(isinstance(loss, int | float) for loss in losses)  # which may be no number any more
        and all(name in run and (run[name] is None or _is_number(run[name])) for name in FIGURES)
        and all(_is_number(run.get(name)) for name in (*set(FIGURES) - UNKNOWN, *SHOWN))
        and isinstance(run.get("false_negatives_truth"), str)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _keep(job: Job, folder: ClustersFolder, outcome: dict[str, Any]) -> dict[str, Any]:
    with replaced_file(job.folder / "result.json") as file:
        file.write_text(json.dumps({"identity": _identity(job, folder), "run": outcome}, indent=2) + "\n")
    return outcome
