"""Compare the candidates of a menu on folds of the user's own data, and choose one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.choosing.answer import answer
from clip_negatives.choosing.choice import FOLDER, Choice, plugins_of, write_choice
from clip_negatives.choosing.fold_rule import fold_rule
from clip_negatives.choosing.fold_runs import FoldRuns, Job, has_bfloat16
from clip_negatives.choosing.menu import DROPOUT_METHOD, Candidate, Menu, menu_of
from clip_negatives.choosing.query_ranks import QueryRanks, RanksByCandidate, mean_mrr, read_ranks, write_ranks
from clip_negatives.errors import InputError
from clip_negatives.heads import HeadSettings, folds_of, part_of
from clip_negatives.heads.folds import batch_size_for
from clip_negatives.host.method import Method
from clip_negatives.progress import Stage, stage
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.digests import digest_of
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.ownership import claim_work
from clip_negatives.storage.paths import check_work, output_path
from clip_negatives.storage.provenance import clusters_section, versions
from clip_negatives.storage.sample_ids import group_coverage

MAX_SAMPLES = 20_000  # samples that are compared, drawn at random: as many near-duplicates are in a batch as with all samples
MIN_SAMPLES = 64
RUNS = "runs"  # folder in the output
LEARNING_RATES = (1e-3, 3e-3, 1e-2)  # the best for `DROPOUT_METHOD` serves all candidates


def choose(
    folder: ClustersFolder,
    output: str | Path | None = None,
    *,
    methods: str | None = None,
    fold_by: str | None = None,
    fold_values: Sequence[str] | None = None,
    folds: int = 3,
    seeds: int = 1,
    batch_size: int = HeadSettings.batch_size,
    steps: int = HeadSettings.steps,
    workers: int = 1,
) -> Choice:
    """Choose the method that serves retrieval best on held-out parts of the user's own data.

    Linear heads are trained on the frozen features of the clusters, with each candidate of a menu, on all folds but one. The
    texts of the held-out samples then search for their images. If candidates are significantly better than in-batch negatives
    at their best temperature, the one of them with the highest MRR is chosen; otherwise the candidate with the highest MRR.
    A control is never chosen.

    Finished runs are kept in `output`, and the same call continues after them. Memory of a process is O(batch_size^2), besides
    the features of at most `MAX_SAMPLES` samples. On a CPU with products of matrices in bfloat16, heads are trained with them.
    All this is our choice.

    Args:
        folder: clusters of the training data, with features.
        output: folder for ``choice.json`` and the runs; None is the folder ``choice`` in the clusters folder.
        methods: see `clip_negatives.choosing.menu_of`.
        fold_by: see `clip_negatives.choosing.fold_rule.fold_rule`.
        fold_values: see `fold_rule`.
        folds: number of folds, at least 2.
        seeds: runs of each candidate on each fold, at least 1.
        batch_size: maximum batch size.
        steps: steps of a run.
        workers: processes that train heads, each with one core, at least 1. The choice does not depend on their number. With
            more than 1, a script must call this under ``if __name__ == "__main__"``.

    Raises:
        InputError: a value is out of range, the clusters have no features, or they cannot be divided into folds.
        PluginError: a plugin or an option is unknown.
        ArtifactError: `output` cannot be written.
    """
    minima = {"seeds": 1, "folds": 2, "batch_size": 2, "steps": 1, "workers": 1}
    for name, value in zip(minima, (seeds, folds, batch_size, steps, workers), strict=True):
        if value < minima[name]:
            raise InputError(f"{argument(name)} must be at least {minima[name]}, got {value}.")
    if folder.clusters.n_samples < MIN_SAMPLES:
        raise InputError(
            f"Choosing a method needs at least {MIN_SAMPLES} samples, but the clusters have {folder.clusters.n_samples}. "
            "Use more data."
        )
    menu = menu_of(methods)
    rows = _compared_rows(folder.clusters.n_samples)
    clusters = part_of(folder.clusters, rows)
    values = None if fold_values is None else [fold_values[row] for row in rows.tolist()]
    rule = fold_rule(clusters, fold_by, values, group_coverage(folder.samples))
    parts = folds_of(rule.components, folds)
    n_train = min(len(fold.train) for fold in parts)
    settings = HeadSettings(steps=steps, batch_size=batch_size_for(n_train, batch_size))
    captions = folder.samples["text"].take(rows.numpy()).to_pylist()
    runs = FoldRuns(clusters, captions, rule.items, parts, settings)
    candidate_runs = _CandidateRuns(runs, seeds, workers, clusters_section(folder.manifest))
    output = output_path(folder.path / FOLDER if output is None else output)
    check_work(output)
    with sole_user(output, wait=False):
        claim_work(output)
        (output / RUNS).mkdir(exist_ok=True)
        ranks, lr = candidate_runs.run(menu, output / RUNS)
        setting, items = candidate_runs.setting(lr), candidate_runs.query_items()
        choice = answer(menu, ranks, setting, rule.description, items, candidate_runs.clusters_record)
        write_choice(choice, output)
    return choice


def _compared_rows(n_samples: int) -> Tensor:
    """Return the ids of the compared samples, ascending."""
    if n_samples <= MAX_SAMPLES:
        return torch.arange(n_samples)
    return torch.randperm(n_samples, generator=torch.Generator().manual_seed(0))[:MAX_SAMPLES].sort().values


class _CandidateRuns:
    """The runs of all candidates on the folds."""

    def __init__(self, runs: FoldRuns, seeds: int, workers: int, clusters_record: dict[str, Any]) -> None:
        self.runs, self.seeds, self.workers, self.clusters_record = runs, seeds, workers, clusters_record

    def run(self, menu: Menu, folder: Path) -> tuple[RanksByCandidate, float]:
        """Return the ranks of all candidates, and their learning rate; finished runs are kept in `folder`."""
        tuned = Candidate(Method.parse(DROPOUT_METHOD))
        untuned = [candidate for candidate in menu.candidates if candidate != tuned]
        n_runs = len(self.runs.folds) * self.seeds * (len(untuned) + len(LEARNING_RATES))
        with stage("Training heads", n_runs, "runs") as running:
            of_rates = self._ranks([(tuned, lr) for lr in LEARNING_RATES], folder, running)
            lr = max(LEARNING_RATES, key=lambda rate: mean_mrr(of_rates[tuned, rate]))
            of_untuned = self._ranks([(candidate, lr) for candidate in untuned], folder, running)
        results = {**of_rates, **of_untuned}
        return {candidate: results[candidate, lr] for candidate in menu.candidates}, lr

    def setting(self, lr: float) -> dict[str, Any]:
        """Return the setting of the runs, for `Choice.setting`."""
        return {
            "n_samples": self.runs.clusters.n_samples,
            "n_queries": sum(len(fold.held_out) for fold in self.runs.folds),
            "folds": len(self.runs.folds),
            "seeds": self.seeds,
            "steps": self.runs.settings.steps,
            "batch_size": self.runs.settings.batch_size,
            "lr": lr,
        }

    def query_items(self) -> list[Tensor]:
        """Return the item of each query of each fold."""
        return [self.runs.items[fold.held_out] for fold in self.runs.folds]

    def _ranks(
        self, candidate_lrs: Sequence[tuple[Candidate, float]], folder: Path, running: Stage
    ) -> dict[tuple[Candidate, float], list[list[QueryRanks]]]:
        """Return the ranks of candidates with a learning rate, by fold and seed; finished runs are read."""
        folds, seeds = range(len(self.runs.folds)), range(self.seeds)
        files = {
            job: folder / f"{self._digest(job)}.json"
            for job in (Job(*candidate_lr, fold, seed) for candidate_lr in candidate_lrs for fold in folds for seed in seeds)
        }
        stored = {job: read_ranks(file, len(self.runs.folds[job.fold].held_out)) for job, file in files.items()}
        ranks = {job: run for job, run in stored.items() if run is not None}
        running.advance(len(ranks))
        for job, run in self.runs.ranks_by_job([job for job in files if job not in ranks], self.workers):
            write_ranks(run, files[job])
            ranks[job] = run
            running.advance()
        return {
            candidate_lr: [[ranks[Job(*candidate_lr, fold, seed)] for seed in seeds] for fold in folds]
            for candidate_lr in candidate_lrs
        }

    def _digest(self, job: Job) -> str:
        """Return a digest of everything that the ranks of a run depend on."""
        method, settings, held_out = job.candidate.method, self.runs.settings, self.runs.folds[job.fold].held_out
        record = {
            "method": [method.sampler, method.weighting, method.temperature],
            "dropout": job.candidate.dropout,
            "lr": job.lr,
            "seed": job.seed,
            "settings": [settings.steps, settings.batch_size, settings.dim, settings.weight_decay, has_bfloat16()],
            "held_out": held_out.tolist(),
            "items": self.runs.items[held_out].tolist(),
            "clusters": self.clusters_record,
            "plugins": plugins_of(method),
            "versions": versions("clip-negatives", "torch"),
        }
        return digest_of({"run": json.dumps(record, sort_keys=True)})[:32]
