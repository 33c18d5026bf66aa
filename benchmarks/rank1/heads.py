"""Screen methods with linear heads on frozen features: python benchmarks/rank1/heads.py [--output FILE] [--only METHOD ...].

What is chosen is chosen on the validation seller: the learning rate for the baseline, then of each method the best candidate.
The test seller is looked at once, by what was chosen. Every finished run is kept; a second call goes on after it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib
import torch
from folds import CACHE, EMOJI, Cut, batch_size, features
from head_training import Job
from runs import Runs
from scores import interval, rank_at

from clip_negatives.atomic import replaced_file

HERE = Path(__file__).parent
BASELINE = "in_batch"


@dataclass(frozen=True)
class Validated:
    """Hold what was seen on validation.

    Attributes:
        lr: learning rate that serves the baseline best.
        rates: Rank@1 of the baseline at each learning rate.
        chosen: of each method, the candidate that serves best.
        gains: of every candidate that was looked at, the relative gain in Rank@1 over the baseline.
    """

    lr: float
    rates: dict[float, float]
    chosen: dict[str, str]
    gains: dict[str, float]


def methods_of(study: dict[str, Any], data: str) -> dict[str, list[str]]:
    """Return the methods that a data set is for, with their candidates."""
    named = study["data"][data].get("methods", study["methods"])
    return {name: study["methods"][name] for name in named}


def validated(
    study: dict[str, Any], runs: Runs, data: str, lrs: list[float], methods: dict[str, list[str]], tried: list[str]
) -> Validated:
    """Choose on validation, among some learning rates and of each method among its candidates."""
    seeds = range(study["validation_seeds"])

    def scores(jobs: dict[Any, list[Job]]) -> dict[Any, float]:
        found = runs([job for each in jobs.values() for job in each])
        return {choice: sum(rank_at(found[job], 1) for job in each) / len(each) for choice, each in jobs.items()}

    told = [spec for candidates in methods.values() if len(candidates) > 1 for spec in candidates] + tried
    if len(lrs) == 1 and not told:  # there is nothing to choose
        return Validated(lrs[0], {}, {name: candidates[0] for name, candidates in methods.items()}, {})
    rates = scores({lr: [Job(data, "validation", BASELINE, lr, seed) for seed in seeds] for lr in lrs})
    lr = max(rates, key=rates.__getitem__)
    found = scores({spec: [Job(data, "validation", spec, lr, seed) for seed in seeds] for spec in dict.fromkeys(told)})
    chosen = {
        name: max(candidates, key=found.__getitem__) if len(candidates) > 1 else candidates[0]
        for name, candidates in methods.items()
    }
    return Validated(lr, rates, chosen, {spec: score / rates[lr] - 1 for spec, score in found.items()})


def figures(outcomes: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> dict[str, Any]:
    """Return Rank@k of some runs, and their gain over those of the baseline."""
    found: dict[str, Any] = {}
    for direction in ("text_to_image", "image_to_text"):
        for k in (1, 5, 10):
            values = torch.tensor([rank_at(one, k, direction) for one in outcomes], dtype=torch.float64)
            told = {"mean": float(values.mean()), "spread": float(values.std())}
            found[f"{direction}_rank_{k}"] = told | interval(outcomes, baseline, k, direction)
    return found


def tested(study: dict[str, Any], runs: Runs, data: str, seen: Validated) -> dict[str, Any]:
    """Return what each chosen candidate does on the test."""
    jobs = {
        name: [Job(data, "test", spec, seen.lr, seed) for seed in range(study["test_seeds"])]
        for name, spec in seen.chosen.items()
    }
    found = runs([job for each in jobs.values() for job in each])
    outcomes = {name: [found[job] for job in each] for name, each in jobs.items()}
    rows: dict[str, Any] = {}
    for name, each in outcomes.items():
        rows[name] = {"candidate": seen.chosen[name]}
        rows[name] |= {"temperature": sum(one["temperature"] for one in each) / len(each)}
        rows[name] |= figures(each, outcomes[BASELINE])
        other = study.get("compared", {}).get(name)
        if other in outcomes:
            rows[name][f"over_{other}"] = figures(each, outcomes[other])
    cut = Cut.of(study, data, "test")
    return {
        "samples": len(cut.trained),
        "queries": len(cut.asked),
        "near_duplicates_per_anchor": cut.near_duplicates(batch_size(study, data)),
        "clustering_seconds": min(one["clustering_seconds"] for each in outcomes.values() for one in each),
        "methods": rows,
    }


def wanted(study: dict[str, Any], data: str, only: list[str] | None) -> tuple[dict[str, list[str]], list[str]]:
    """Return the methods to run on a data set and what else to look at on validation."""
    methods, tried = methods_of(study, data), study["data"][data].get("tried", study.get("tried", []))
    if only is None:
        return methods, tried
    compared = [other for name, other in study.get("compared", {}).items() if name in only]
    return {name: methods[name] for name in methods if name in (BASELINE, *only, *compared)}, [
        spec for spec in tried if spec in only
    ]


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a data set with those of the methods that were run now in their places."""
    before = {"methods": {}, "validation": {}, **(old or {})}
    methods, gains = {**before["methods"], **new.get("methods", {})}, {**before["validation"], **new["validation"]}
    return {**before, **new, "methods": methods, "validation": gains}


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=HERE / "heads.toml")
    parser.add_argument("--output", type=Path, required=True, help="result file; what it has of other rows stays in it")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="rows, or candidates that are tried; default: all")
    parser.add_argument("--data", nargs="+", help="data sets of the study; default: all")
    parser.add_argument("--keep-choice", action="store_true", help="with --only: the candidates that the file has chosen")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of features and finished runs")
    return parser.parse_args()


def main() -> None:
    """Run the study, or a part of it, and write its result file."""
    options = arguments()
    study = tomllib.loads(options.study.read_text()) | {"cache": str(options.cache)}
    runs = Runs(study, options.workers)
    chosen = options.data or list(study["data"])
    for name in chosen:
        features(study, study["data"][name].get("source", EMOJI))  # once, before the processes ask for them
    for data in chosen:
        methods, tried = wanted(study, data, options.only)
        before = read(options.output).get(data, {}) if options.only else {}
        if options.keep_choice:
            methods, tried = kept_choice(methods, before), []
        lrs = [before["lr"]] if before else rates_of(study, data)
        seen = validated(study, runs, data, lrs, methods, tried)
        new: dict[str, Any] = {"lr": seen.lr, "validation": seen.gains}
        if study["test_seeds"] and (options.only is None or set(options.only) & set(methods)):
            new |= tested(study, runs, data, seen)
        write(options.output, study, data, new)
    runs.close()


def read(file: Path) -> dict[str, Any]:
    """Return the data sets of a result file, none where there is no file."""
    found: dict[str, Any] = json.loads(file.read_text())["data"] if file.exists() else {}
    return found


def kept_choice(methods: dict[str, list[str]], before: dict[str, Any]) -> dict[str, list[str]]:
    """Return of each method the candidate that was chosen before, or all where none was."""
    rows = before.get("methods", {})
    return {name: [rows[name]["candidate"]] if name in rows else candidates for name, candidates in methods.items()}


def rates_of(study: dict[str, Any], data: str) -> list[float]:
    """Return the learning rates to choose from: one, where the study says it."""
    how = study["data"][data]
    return [how["lr"]] if "lr" in how else how.get("learning_rates", study["learning_rates"])


def write(file: Path, study: dict[str, Any], data: str, new: dict[str, Any]) -> None:
    """Put the figures of a data set into a result file."""
    before = read(file)
    told = {name: value for name, value in study.items() if name != "cache"}
    whole = {**before, data: merged(before.get(data), new)}
    ordered = {name: whole[name] for name in study["data"] if name in whole}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(file) as partial:
        partial.write_text(json.dumps({"study": told, "data": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
