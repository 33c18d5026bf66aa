"""Measure what `choose` is worth on data sets with a test of their own: python benchmarks/rank1/choices.py --output FILE.

`choose` gets the training data alone. Then all its candidates but the controls are trained on all training data, with several
seeds, and tested. The regret is the relative difference in MRR between the best of them and the chosen one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from folds import Fold, batch_size, cache_of
from head_training import Job
from runs import Runs
from studies import BASELINE, parse, read_data, write_data

from clip_negatives import read_clusters, write_clusters
from clip_negatives.choosing import choose, menu_of
from clip_negatives.choosing.choice import Choice
from clip_negatives.choosing.verdict import gains

HELD = f"{BASELINE}@0.1"  # the best single temperature of the study
FIXED = (BASELINE, HELD, "default", "default@0.1")  # choices without looking at the data, for comparison


def choice_of(fold: Fold, output: Path, size: int, study: dict[str, Any], *, by_group: bool) -> Choice:
    """Return what `choose` chooses on the training data of a fold; finished runs are kept in `output`."""
    clusters, n = fold.clusters, fold.clusters.n_samples
    samples = {
        "key": [str(row) for row in range(n)],
        "text": fold.captions,
        "group": [str(g) for g in clusters.groups.tolist()],
    }
    options: dict[str, Any] = {
        "methods": study.get("methods"),
        "fold_by": "group" if by_group else "near-duplicates",
        "seeds": study["choice_seeds"],
        "batch_size": size,
        "steps": study["steps"],
    }
    with tempfile.TemporaryDirectory() as folder:
        write_clusters(folder, clusters, pa.table(samples), {"clusterer": "of the study"})
        return choose(read_clusters(folder), output, **options)


def tested(runs: Runs, data: str, methods: list[str], lr: float, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Return the test outcomes of each method."""
    jobs = {name: [Job(data, "test", name, lr, seed) for seed in range(seeds)] for name in methods}
    outcomes = runs([job for each in jobs.values() for job in each])
    return {name: [outcomes[job] for job in each] for name, each in jobs.items()}


def mrr(outcomes: list[dict[str, Any]]) -> float:
    """Return the mean reciprocal rank, text to image."""
    return float((1 / torch.tensor([outcome["text_to_image"] for outcome in outcomes]).double()).mean())


def over_held(outcomes: dict[str, list[dict[str, Any]]], name: str) -> dict[str, float]:
    """Return the gain in MRR over `HELD` with its interval over seeds and queries."""
    scores = {
        method: [[1 / torch.tensor(outcome["text_to_image"]).double() for outcome in outcomes[method]]]
        for method in (name, HELD)
    }
    queries = torch.arange(len(outcomes[name][0]["text_to_image"]))
    (gain,) = gains([scores[name]], scores[HELD], [queries], comparisons=1)
    return {"gain": gain.gain, "low": gain.low, "high": gain.high}


def row_of(choice: Choice, outcomes: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the regrets of a choice and of fixed methods."""
    scores = {name: mrr(each) for name, each in outcomes.items()}
    best = max(scores, key=scores.__getitem__)
    return {
        "chosen": choice.method,
        "sentence": choice.sentence,
        "best": best,
        "test_mrr": scores,
        "regret": scores[best] / scores[choice.method] - 1,
        "regret_of": {name: scores[best] / scores[name] - 1 for name in FIXED if name in scores},
        "over_held": over_held(outcomes, choice.method),
        "over_baseline": scores[choice.method] / scores[BASELINE] - 1,
        "order": spearman(choice, scores),
        "folds": {row.name: row.mrr for row in choice.rows},
    }


def spearman(choice: Choice, scores: dict[str, float]) -> float:
    """Return the rank correlation between MRR on the folds and MRR on the test."""
    from scipy.stats import spearmanr

    return float(spearmanr([choice.row(name).mrr for name in scores], list(scores.values())).statistic)


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", help="data sets of the study; default: all")
    parser.add_argument("--workers", type=int, default=2)
    options, study = parse(parser, "choices.toml")
    runs = Runs(study, options.workers)
    methods = [str(candidate) for candidate in menu_of(study.get("methods")).candidates if not candidate.is_control]
    for data in options.data or list(study["data"]):
        rows = {}
        for question, by_group in (("near-duplicates", False), ("groups", True)):
            output = cache_of(study) / "choices" / f"{data}-{question}"
            output.parent.mkdir(exist_ok=True)
            choice = choice_of(Fold.of(study, data, "test"), output, batch_size(study, data), study, by_group=by_group)
            outcomes = tested(runs, data, methods, choice.setting["lr"], study["test_seeds"])
            rows[question] = row_of(choice, outcomes)
            print(data, question, rows[question]["sentence"], f"regret {rows[question]['regret']:.1%}", flush=True)
        write_data(options.output, study, data, {**read_data(options.output).get(data, {}), **rows})
    runs.close()


if __name__ == "__main__":
    main()
