"""A whole comparison: data, tuning, clusters, runs and statistics. Finished runs are not repeated."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clip_negatives.advice import argument
from clip_negatives.compare.arguments import check_paths, open_described, resolve_data, with_defaults
from clip_negatives.compare.methods import FIXED_TEMPERATURE, METHODS, QUICK_METHODS, parse_methods
from clip_negatives.compare.queries import Queries, read_queries
from clip_negatives.compare.results import Comparison, summarised
from clip_negatives.compare.reuse import OnRun, finished
from clip_negatives.compare.run import Job, check_methods, provenance_of
from clip_negatives.compare.settings import effective, is_set
from clip_negatives.compare.tuning import Tuned, Validation, rates_around, tune
from clip_negatives.errors import ArtifactError, InputError
from clip_negatives.host.method import Method, check_temperature
from clip_negatives.integrations.open_clip.arguments import parsed
from clip_negatives.integrations.open_clip.train_set import steps_of_epoch
from clip_negatives.pipelines.prepare import prepare_cached
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.printing import log
from clip_negatives.progress import stage
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.ownership import claim_work, replaced_file
from clip_negatives.storage.paths import check_work, output_path
from clip_negatives.storage.provenance import Record


def compare(
    output: str | Path,
    *,
    methods: str | None = None,
    seeds: int | None = None,
    quick: bool = False,
    test_data: str | None = None,
    recipe: Recipe | None = None,
    arguments: Sequence[str] = (),
    temperatures: Sequence[float] = (FIXED_TEMPERATURE,),
    tune_lr: bool = False,
    on_run: OnRun | None = None,
) -> Comparison:
    """Train every method with every seed and compare.

    All runs train with open_clip. Runs of one seed have the same initial weights, data, augmentation and number of steps.
    Finished runs are kept in `output`; the same call continues after them.

    Args:
        output: folder for runs and results.
        methods: see `clip_negatives.compare.parse_methods`; baselines and control are always included. None is "default,paper",
            or "default,one_cluster+uniform" if `quick`.
        seeds: runs of each method, with seeds 0, 1, ...; None is 3, or 2 if `quick`.
        quick: train for 1 epoch.
        test_data: csv or tars of the test pairs, required with ``--train-data``; the catalogue has its own test pairs.
        recipe: encoders, clusterers and group column; without a group column, equal texts are correct pairs.
        arguments: further arguments of open_clip_train. The tiny model has settings of its own; every other model has
            open_clip's defaults.
        temperatures: temperature of the second baseline, `in_batch` with a fixed temperature. The best of several is chosen on
            validation pairs, held out of the training data. Empty: no second baseline.
        tune_lr: choose the learning rate of the baseline on validation pairs, and use it for all methods.
        on_run: called before each run with its job, its number, the number of runs, and "new", "reused" or
            "again, because ...".

    Raises:
        ClipNegativesError: an argument is wrong, or a run failed; finished runs are kept.
    """
    seeds = (2 if quick else 3) if seeds is None else seeds
    methods = (QUICK_METHODS if quick else METHODS) if methods is None else methods
    if seeds < 1:
        raise InputError(f"Expected at least 1 seed, got {seeds}.")
    for temperature in temperatures:
        check_temperature(temperature)
    if tune_lr and is_set("lr", arguments):
        raise InputError(f"--lr sets the learning rate, and {argument('tune_lr')} chooses it. Leave one of them out.")
    output, recipe = output_path(output), recipe or Recipe()
    check_work(output)
    line = with_defaults(arguments, quick=quick)
    check_paths(line, output, test_data)
    parse_methods(methods)
    recipe.check()
    with sole_user(output, wait=False):
        line, train, test = resolve_data(line, output, test_data, recipe.columns.group)
        study = _Study(output, seeds, train, test, recipe, on_run)
        study.check(parse_methods(methods), line)
        choices = study.tune(line, temperatures, tune_lr=tune_lr)
        by_choice = {choice.name: choice.value for choice in choices}
        if "lr" in by_choice:
            line = [*line, "--lr", f"{by_choice['lr']:g}"]
        fixed = by_choice.get("temperature", temperatures[0] if temperatures else None)
        settings = effective(line, arguments, quick=quick, tuned=list(by_choice))
        tuning = {"settings": [setting._asdict() for setting in settings], "tuning": [asdict(choice) for choice in choices]}
        comparison = study.run(parse_methods(methods, fixed), line, tuning)
        with replaced_file(output / "results.json") as file:
            file.write_text(json.dumps(comparison.to_dict(), indent=2) + "\n")
        return comparison


def run_folder(output: Path, method: str, seed: int) -> Path:
    """Return the folder of a run, by method name and seed."""
    slug = "".join(char if char.isalnum() or char in "-_." else "-" for char in method)
    return output / "runs" / f"{slug}-{hashlib.sha256(method.encode()).hexdigest()[:6]}-seed-{seed}"


@dataclass(frozen=True, slots=True)
class _Study:
    """A comparison whose output folder is locked; `train` and `test` describe the pairs."""

    output: Path
    seeds: int
    train: dict[str, Any]
    test: dict[str, Any]
    recipe: Recipe
    on_run: OnRun | None

    def check(self, by_name: Mapping[str, Method], line: Sequence[str]) -> None:
        """Check data and methods before the first file is written; log a warm-up that is longer than the training."""
        len(open_described(self.test))  # raises now if the test pairs cannot be read
        check_methods(by_name.values(), line, None)
        args = parsed(line)
        steps = steps_of_epoch(args) * args.epochs
        if args.warmup >= steps:
            fault = f"--warmup {args.warmup} is not shorter than the training ({steps} steps)"
            log(f"{fault}, so the learning rate never reaches --lr {args.lr:g}. Set --warmup.")

    def tune(self, line: Sequence[str], temperatures: Sequence[float], *, tune_lr: bool) -> list[Tuned]:
        """Choose learning rate and temperature of the baseline on validation pairs, as far as asked."""
        choices: list[Tuned] = []
        if not tune_lr and len(temperatures) < 2:
            return choices
        claim_work(self.output)
        validation = Validation(self.train, self.output)
        if tune_lr:
            choices.append(tune("lr", rates_around(line), line, validation, self.on_run))
            line = [*line, "--lr", f"{choices[0].value:g}"]
        if len(temperatures) > 1:
            choices.append(tune("temperature", temperatures, line, validation, self.on_run))
        return choices

    def run(self, by_name: Mapping[str, Method], line: Sequence[str], more: dict[str, Any]) -> Comparison:
        """Make all runs that are not finished, and return the outcome."""
        started = time.perf_counter()
        folder = prepare_cached(open_described(self.train), self.recipe)
        prepared = time.perf_counter() - started
        check_methods(by_name.values(), line, folder.path)
        claim_work(self.output)
        jobs = self._jobs(by_name, line, folder.path)

        def identities() -> list[Record]:
            data = {"training": open_described(self.train).fingerprint(), "test": open_described(self.test).fingerprint()}
            return [provenance_of(job, folder, data) for job in jobs]

        runs, reused = finished(jobs, identities, self._check_images, self.on_run)
        setting = {**self._setting(line, folder), "prepare_seconds": prepared, "runs_reused": reused, **more}
        answers = {name: self._answers(name) for name in by_name}
        return summarised(setting, runs, list(by_name), answers)

    def _jobs(self, by_name: Mapping[str, Method], line: Sequence[str], clusters: Path) -> list[Job]:
        fingerprint = open_described(self.test).fingerprint()
        return [
            Job(name, method, seed, tuple(line), clusters, self.test, fingerprint, run_folder(self.output, name, seed))
            for seed in range(self.seeds)
            for name, method in by_name.items()
        ]

    def _check_images(self) -> None:
        """Raise DataError if an image of the test pairs cannot be read."""
        pairs = open_described(self.test)
        with stage("Checking the test images", len(pairs)) as running:
            for _ in pairs.images(0, len(pairs)):
                running.advance()

    def _answers(self, method: str) -> list[Queries]:
        """Return the ranks of the test queries in the runs of a method, by seed."""
        answers = []
        for seed in range(self.seeds):
            queries = read_queries(run_folder(self.output, method, seed))
            if queries is None:
                folder = run_folder(self.output, method, seed)
                raise ArtifactError(
                    f"The ranks in {folder} cannot be read. Start the comparison again: it makes this run again."
                )
            answers.append(queries)
        return answers

    def _setting(self, line: Sequence[str], folder: ClustersFolder) -> dict[str, Any]:
        args = parsed(line)
        return {
            "arguments": list(line),
            "model": args.model,
            "batch_size": args.batch_size,
            "epochs": args.epochs,
            "seeds": self.seeds,
            "n_train": folder.clusters.n_samples,
            "train": self.train,
            "test": self.test,
            "data": {
                "training": open_described(self.train).identity(),
                "test": open_described(self.test).identity(),
            },
            "clusters": {key: value for key, value in folder.manifest.items() if key != "files"},
            "versions": {name: version(name) for name in ("clip-negatives", "open_clip_torch", "torch", "faiss-cpu")},
            "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        }
