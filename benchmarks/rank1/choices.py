"""Measure what `choose` is worth on data sets with a test of their own: python benchmarks/rank1/choices.py --output FILE.

`choose` gets the training data alone. Then all its candidates, and the other methods of the study file, are trained on all
training data, with several seeds, and tested. The regret is the relative difference in MRR between the best candidate, without
the controls, and the chosen one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from folds import Fold, batch_size, cache_of
from head_training import Job
from runs import Runs
from studies import BASELINE, parse, write_data

from clip_negatives import Method, read_clusters, write_clusters
from clip_negatives.choosing import Candidate, choose, menu_of
from clip_negatives.choosing.choice import Choice
from clip_negatives.choosing.intervals import gains

Outcome = dict[str, Any]

HELD = f"{BASELINE}@0.1"  # the best single temperature of the study
FIXED = (BASELINE, HELD, "default", "default@0.1")  # choices without looking at the data, for comparison


def choice_of(fold: Fold, output: Path, size: int, study: dict[str, Any], *, by_group: bool, workers: int) -> Choice:
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
        "workers": workers,
    }
    with tempfile.TemporaryDirectory() as folder:
        write_clusters(folder, clusters, pa.table(samples), {"clusterer": "of the study"})
        return choose(read_clusters(folder), output, **options)


def tested(runs: Runs, data: str, candidates: Sequence[Candidate], lr: float, seeds: int) -> dict[str, list[Outcome]]:
    """Return the test outcomes of each candidate."""
    jobs = {
        str(candidate): [Job(data, "test", str(candidate.method), lr, seed, candidate.dropout) for seed in range(seeds)]
        for candidate in candidates
    }
    outcomes = runs([job for each in jobs.values() for job in each])
    return {name: [outcomes[job] for job in each] for name, each in jobs.items()}


def figures_of(outcomes: dict[str, list[Outcome]]) -> dict[str, dict[str, Any]]:
    """Return MRR, Rank@1 and Rank@10 of each method, and its gain in MRR over `HELD`, with simultaneous intervals."""
    ranks = {name: torch.tensor([outcome["text_to_image"] for outcome in each]).double() for name, each in outcomes.items()}
    scores = [[list(1 / each)] for each in ranks.values()]
    queries = torch.arange(next(iter(ranks.values())).shape[1])
    held = gains(scores, [list(1 / ranks[HELD])], [queries], comparisons=len(scores) - 1)
    return {
        name: {
            "mrr": float((1 / each).mean()),
            "rank_1": float((each <= 1).double().mean()),
            "rank_10": float((each <= 10).double().mean()),
            "over_held": {"gain": gain.estimate, "low": gain.low, "high": gain.high},
        }
        for (name, each), gain in zip(ranks.items(), held, strict=True)
    }


def row_of(choice: Choice, figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the regrets of a choice and of fixed methods; `figures` are those of the candidates without the controls."""
    scores = {name: one["mrr"] for name, one in figures.items()}
    best = max(scores, key=scores.__getitem__)
    return {
        "chosen": choice.method,
        "sentence": choice.sentence,
        "best": best,
        "lr": choice.setting["lr"],
        "regret": scores[best] / scores[choice.method] - 1,
        "regret_of": {name: scores[best] / scores[name] - 1 for name in FIXED if name in scores},
        "over_held": figures[choice.method]["over_held"],
        "over_baseline": scores[choice.method] / scores[BASELINE] - 1,
        "order": spearman(choice, scores),
        "folds": {row.name: row.mrr for row in choice.rows},
        "test": figures,
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
    menu = menu_of(study.get("methods")).candidates
    methods = [candidate for candidate in menu if not candidate.is_control]
    others = [
        *(candidate for candidate in menu if candidate.is_control),
        *(Candidate(Method.parse(it)) for it in study["beside"]),
    ]
    for data in options.data or list(study["data"]):
        rows: dict[str, Any] = {}
        for question, by_group in (("near-duplicates", False), ("groups", True)):
            output = cache_of(study) / "choices" / f"{data}-{question}"
            output.parent.mkdir(exist_ok=True)
            fold, size = Fold.of(study, data, "test"), batch_size(study, data)
            choice = choice_of(fold, output, size, study, by_group=by_group, workers=options.workers)
            lr = choice.setting["lr"]
            rows[question] = row_of(choice, figures_of(tested(runs, data, methods, lr, study["test_seeds"])))
            print(data, question, rows[question]["sentence"], f"regret {rows[question]['regret']:.1%}", flush=True)
            if not by_group:
                rows["beside"] = figures_of(tested(runs, data, [*methods, *others], lr, study["test_seeds"]))
        write_data(options.output, study, data, rows)
    runs.close()


if __name__ == "__main__":
    main()
