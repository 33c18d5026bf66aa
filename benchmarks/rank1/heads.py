"""Screen methods with linear heads on frozen features: python benchmarks/rank1/heads.py --output FILE [--only METHOD ...].

The validation seller decides the learning rate of the baseline, and then the best candidate of each method. The test is used
once, by the chosen candidates. Finished runs are cached, so that a second call continues.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from folds import EMOJI, Cut, batch_size, features
from head_training import Job
from runs import Runs
from scores import interval, rank_at
from studies import BASELINE, parse, read_data, write_data


@dataclass(frozen=True)
class Validated:
    """Results on validation."""

    lr: float  # best learning rate for the baseline
    rates: dict[float, float]  # Rank@1 of the baseline at each learning rate
    chosen: dict[str, str]  # best candidate of each method
    gains: dict[str, float]  # relative gain in Rank@1 over the baseline of every candidate


def methods_of(study: dict[str, Any], data: str) -> dict[str, list[str]]:
    """Return the methods of a data set with their candidates."""
    named = study["data"][data].get("methods", study["methods"])
    return {name: study["methods"][name] for name in named}


def validated(
    study: dict[str, Any], runs: Runs, data: str, lrs: list[float], methods: dict[str, list[str]], tried: list[str]
) -> Validated:
    """Choose the learning rate and a candidate of each method on validation."""
    seeds = range(study["validation_seeds"])

    def scores(jobs: dict[Any, list[Job]]) -> dict[Any, float]:
        found = runs([job for each in jobs.values() for job in each])
        return {choice: sum(rank_at(found[job], 1) for job in each) / len(each) for choice, each in jobs.items()}

    told = [spec for candidates in methods.values() if len(candidates) > 1 for spec in candidates] + tried
    if len(lrs) == 1 and not told:  # nothing to choose
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
    """Return Rank@k of these runs, and their gain over the runs of the baseline."""
    found: dict[str, Any] = {}
    for direction in ("text_to_image", "image_to_text"):
        for k in (1, 5, 10):
            values = torch.tensor([rank_at(one, k, direction) for one in outcomes], dtype=torch.float64)
            told = {"mean": float(values.mean()), "spread": float(values.std())}
            found[f"{direction}_rank_{k}"] = told | interval(outcomes, baseline, k, direction)
    return found


def tested(study: dict[str, Any], runs: Runs, data: str, seen: Validated) -> dict[str, Any]:
    """Return the test results of each chosen candidate."""
    seeds = range(study["test_seeds"])
    jobs = {name: [Job(data, "test", spec, seen.lr, seed) for seed in seeds] for name, spec in seen.chosen.items()}
    found = runs([job for each in jobs.values() for job in each])
    outcomes = {name: [found[job] for job in each] for name, each in jobs.items()}
    rows: dict[str, Any] = {}
    for name, each in outcomes.items():
        temperature = sum(one["temperature"] for one in each) / len(each)
        rows[name] = {"candidate": seen.chosen[name], "temperature": temperature, **figures(each, outcomes[BASELINE])}
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
    """Return the methods to run on a data set, and further candidates for validation."""
    methods, tried = methods_of(study, data), study["data"][data].get("tried", study.get("tried", []))
    if only is None:
        return methods, tried
    compared = [other for name, other in study.get("compared", {}).items() if name in only]
    methods = {name: methods[name] for name in methods if name in (BASELINE, *only, *compared)}
    return methods, [spec for spec in tried if spec in only]


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a data set, updated with those of the new runs."""
    before = {"methods": {}, "validation": {}, **(old or {})}
    methods, gains = {**before["methods"], **new.get("methods", {})}, {**before["validation"], **new["validation"]}
    return {**before, **new, "methods": methods, "validation": gains}


def main() -> None:
    """Run the study or a part of it, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="rows, or candidates that are tried; default: all")
    parser.add_argument("--data", nargs="+", help="data sets of the study; default: all")
    parser.add_argument("--keep-choice", action="store_true", help="with --only: the candidates that the file has chosen")
    parser.add_argument("--workers", type=int, default=2)
    options, study = parse(parser)
    runs = Runs(study, options.workers)
    chosen = options.data or list(study["data"])
    for name in chosen:
        features(study, study["data"][name].get("source", EMOJI))  # encode once, before the processes start
    for data in chosen:
        methods, tried = wanted(study, data, options.only)
        before = read_data(options.output).get(data, {}) if options.only else {}
        if options.keep_choice:
            methods, tried = kept_choice(methods, before), []
        lrs = [before["lr"]] if before else rates_of(study, data)
        seen = validated(study, runs, data, lrs, methods, tried)
        new: dict[str, Any] = {"lr": seen.lr, "validation": seen.gains}
        if study["test_seeds"] and (options.only is None or set(options.only) & set(methods)):
            new |= tested(study, runs, data, seen)
        write_data(options.output, study, data, merged(read_data(options.output).get(data), new))
    runs.close()


def kept_choice(methods: dict[str, list[str]], before: dict[str, Any]) -> dict[str, list[str]]:
    """Return the candidate that was chosen before of each method, all of them if none was."""
    rows = before.get("methods", {})
    return {name: [rows[name]["candidate"]] if name in rows else candidates for name, candidates in methods.items()}


def rates_of(study: dict[str, Any], data: str) -> list[float]:
    """Return the learning rates to choose from, one if the study names it."""
    how = study["data"][data]
    return [how["lr"]] if "lr" in how else how.get("learning_rates", study["learning_rates"])


if __name__ == "__main__":
    main()
