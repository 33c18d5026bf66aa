"""A whole comparison: data, clusters, runs and statistics. Finished runs are not repeated."""

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

from clip_negatives.compare.arguments import check_paths, open_described, resolve_data, with_defaults
from clip_negatives.compare.methods import BASELINE, parse_methods
from clip_negatives.compare.run import RESULT, Job, check_methods, provenance_of, run, settle
from clip_negatives.compare.statistics import Difference, Summary, paired_difference, summarise
from clip_negatives.errors import InputError
from clip_negatives.host.method import Method
from clip_negatives.integrations.open_clip.arguments import parsed
from clip_negatives.pipelines.prepare import prepare_cached
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.progress import stage
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.ownership import claim_work, replaced_file
from clip_negatives.storage.paths import check_work, output_path
from clip_negatives.storage.provenance import Record, differences, in_words
from clip_negatives.storage.safe_reading import read_json

# Fields of a run that are summarised over seeds.
FIGURES = (
    *(f"{direction}_rank_{k}" for direction in ("text_to_image", "image_to_text") for k in (1, 5, 10)),
    *("seconds_per_step", "peak_memory_mib"),
    *("false_negatives_per_anchor", "false_negatives_kept_per_anchor", "false_weight", "removed_share"),
)
OPTIONAL = {"seconds_per_step", "false_negatives_kept_per_anchor", "false_weight", "removed_share"}  # figures that may be None
SHOWN = ("seed", "steps", "queries", *(f"chance_rank_{k}" for k in (1, 5, 10)))  # further numbers that every run has


OnRun = Callable[[Job, int, int, str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        setting: arguments, data, clusters, versions and machine.
        runs: fields of each run, ordered by seed, then method.
        summaries: mean and spread of each figure, by method.
        differences: paired difference of each figure to the baseline, by method.
    """

    setting: dict[str, Any]
    runs: list[dict[str, Any]]
    summaries: dict[str, dict[str, Summary]]
    differences: dict[str, dict[str, Difference]]

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as a JSON object."""
        return asdict(self)


def compare(
    output: str | Path,
    *,
    methods: str = "in_batch,default,paper",
    seeds: int | None = None,
    quick: bool = False,
    test_data: str | None = None,
    recipe: Recipe | None = None,
    arguments: Sequence[str] = (),
    on_run: OnRun | None = None,
) -> Comparison:
    """Train every method with every seed and compare.

    All runs train with open_clip. Runs of one seed have the same initial weights, data, augmentation and number of steps.
    Finished runs are kept in `output`; the same call continues after them.

    Args:
        output: folder for runs and results.
        methods: see `clip_negatives.compare.parse_methods`; baseline and control are always included.
        seeds: runs of each method, with seeds 0, 1, ...; None is 3, or 2 if `quick`.
        quick: train for 2 epochs instead of 20.
        test_data: csv or tars of the test pairs, required with ``--train-data``; the catalogue has its own test pairs.
        recipe: encoders, clusterers and group column; without a group column, equal texts are correct pairs.
        arguments: further arguments of open_clip_train.
        on_run: called before each run with its job, its number, the number of runs, and "new", "kept" or "again, because ...".

    Raises:
        ClipNegativesError: an argument is wrong, or a run failed; finished runs are kept.
    """
    seeds = (2 if quick else 3) if seeds is None else seeds
    if seeds < 1:
        raise InputError(f"Expected at least 1 seed, got {seeds}.")
    output, recipe = output_path(output), recipe or Recipe()
    check_work(output)
    line = with_defaults(arguments, quick=quick)
    check_paths(line, output, test_data)
    by_name = parse_methods(methods)
    recipe.check()
    with sole_user(output, wait=False):
        return _compare(output, by_name, seeds, line, test_data, recipe, on_run)


def _compare(
    output: Path,
    by_name: dict[str, Method],
    seeds: int,
    line: list[str],
    test_data: str | None,
    recipe: Recipe,
    on_run: OnRun | None,
) -> Comparison:
    """Run the comparison; the caller has locked `output`."""
    line, train, test = resolve_data(line, output, test_data, recipe.columns.group)
    test_pairs = open_described(test)
    len(test_pairs)  # raises now if the test pairs cannot be read
    test_fingerprint = test_pairs.fingerprint()
    check_methods(by_name.values(), line, None)
    started = time.perf_counter()
    folder = prepare_cached(open_described(train), recipe)
    prepared = time.perf_counter() - started
    check_methods(by_name.values(), line, folder.path)
    claim_work(output)
    jobs = [
        Job(name, method, seed, tuple(line), folder.path, test, test_fingerprint, run_folder(output, name, seed))
        for seed in range(seeds)
        for name, method in by_name.items()
    ]

    def identities() -> list[Record]:
        data = {"training": open_described(train).fingerprint(), "test": open_described(test).fingerprint()}
        return [_identity(job, provenance_of(job, folder, data)) for job in jobs]

    expected = identities()
    kept = [_kept(job, identity) for job, identity in zip(jobs, expected, strict=True)]
    if any(outcome is None for outcome, _ in kept):
        with stage("Checking the test images", len(test_pairs)) as running:
            for _ in test_pairs.images(0, len(test_pairs)):  # raises now if an image cannot be read
                running.advance()
    runs = []
    with stage("Comparing", sum(outcome is None for outcome, _ in kept), "new runs") as running:
        for number, (job, (outcome, state)) in enumerate(zip(jobs, kept, strict=True)):
            if on_run is not None:
                on_run(job, number, len(jobs), state)
            if outcome is None:
                outcome = run(job)
                if changes := next(filter(None, map(differences, expected, identities())), None):
                    fault = f"While the comparison ran, something changed: {in_words(changes)}."
                    raise InputError(f"{fault} Start it again; runs that are still valid are kept.")
                with replaced_file(job.new / RESULT) as partial:
                    partial.write_text(json.dumps({"identity": expected[number], "run": outcome}, indent=2) + "\n")
                settle(job.folder)
                running.advance()
            runs.append(outcome)
    args = parsed(line)
    setting = {
        "arguments": line,
        "model": args.model,
        "batch_size": args.batch_size,
        "epochs": args.epochs,
        "seeds": seeds,
        "n_train": folder.clusters.n_samples,
        "prepare_seconds": prepared,
        "test": test,
        "clusters": {key: value for key, value in folder.manifest.items() if key != "files"},
        "versions": _versions(),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    comparison = _summarise(setting, runs, list(by_name))
    with replaced_file(output / "results.json") as file:
        file.write_text(json.dumps(comparison.to_dict(), indent=2) + "\n")
    return comparison


def run_folder(output: Path, method: str, seed: int) -> Path:
    """Return the folder of a run, by method name and seed."""
    slug = "".join(char if char.isalnum() or char in "-_." else "-" for char in method)
    return output / "runs" / f"{slug}-{hashlib.sha256(method.encode()).hexdigest()[:6]}-seed-{seed}"


def read_run(file: Path) -> tuple[Record, dict[str, Any]] | None:
    """Return provenance and outcome of a run from its result file, or None if the file is missing or damaged."""
    try:
        stored = read_json(file, "json_bytes")
    except (OSError, ValueError):
        return None
    identity, outcome = stored.get("identity"), stored.get("run")
    if isinstance(identity, dict) and isinstance(outcome, dict) and _is_outcome(outcome):
        return identity, outcome
    return None


def _summarise(setting: dict[str, Any], runs: list[dict[str, Any]], names: Sequence[str]) -> Comparison:
    comparison = Comparison(setting, runs, {}, {})
    runs_of = {name: [run for run in runs if run["method"]["name"] == name] for name in names}
    for name in names:
        values = {figure: [run[figure] for run in runs_of[name]] for figure in FIGURES}
        # For example, the removed share is None for a weighting that is computed at each step.
        known = {figure: numbers for figure, numbers in values.items() if None not in numbers}
        comparison.summaries[name] = {figure: summarise(numbers) for figure, numbers in known.items()}
        if name != BASELINE:
            comparison.differences[name] = {
                figure: paired_difference(numbers, [run[figure] for run in runs_of[BASELINE]])
                for figure, numbers in known.items()
            }
    return comparison


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("clip-negatives", "open_clip_torch", "torch", "faiss-cpu")}


def _identity(job: Job, provenance: Record) -> Record:
    return {**provenance, "outcome": {"method": job.name, "figures": list(FIGURES)}}


def _kept(job: Job, identity: Record) -> tuple[dict[str, Any] | None, str]:
    """Return the outcome of an earlier run with the same provenance, or None, and the state that `on_run` gets."""
    settle(job.folder)
    stored = read_run(job.folder / RESULT)
    if stored is None:
        return None, "again, because its result is damaged" if (job.folder / RESULT).exists() else "new"
    if changes := differences(stored[0], identity):
        return None, f"again, because {in_words(changes)}"
    return stored[1], "kept"


def _is_outcome(run: dict[str, Any]) -> bool:
    """Return whether a run has every field that is summarised or shown, each of the right type."""
    method, losses = run.get("method"), run.get("losses")
    return (
        isinstance(method, dict)
        and all(isinstance(method.get(name), str) for name in ("name", "sampler", "weighting"))
        and (method.get("temperature", "") is None or _is_number(method.get("temperature")))
        and isinstance(losses, list)
        and all(isinstance(loss, int | float) for loss in losses)  # NaN too
        and all(name in run and (run[name] is None or _is_number(run[name])) for name in FIGURES)
        and all(_is_number(run.get(name)) for name in (*set(FIGURES) - OPTIONAL, *SHOWN))
        and isinstance(run.get("false_negatives_truth"), str)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
