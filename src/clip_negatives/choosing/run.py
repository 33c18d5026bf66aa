"""Compare the candidates of a menu on folds of the user's own data, and choose one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_negatives.choosing.answer import answer
from clip_negatives.choosing.choice import FOLDER, Choice, plugins_of, write_choice
from clip_negatives.choosing.menu import DROPOUT_METHOD, Candidate, Menu, menu_of
from clip_negatives.choosing.outcome import Outcome, Outcomes, mean_mrr, read_outcome, write_outcome
from clip_negatives.choosing.question import Question, question_of
from clip_negatives.errors import InputError
from clip_negatives.heads import Fold, HeadSettings, folds_of, part_of, train_heads
from clip_negatives.heads.folds import batch_size_for
from clip_negatives.host.method import Method
from clip_negatives.interfaces import Clusters
from clip_negatives.metrics import first_correct
from clip_negatives.progress import stage
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.digests import digest_of
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.ownership import claim_work
from clip_negatives.storage.paths import check_work, output_path
from clip_negatives.storage.provenance import clusters_section, versions

MAX_SAMPLES = 20_000  # samples that are compared, drawn at random: as many near-duplicates are in a batch as with all samples
LEAST_SAMPLES = 64
RUNS = "runs"  # folder in the output
LEARNING_RATES = (1e-3, 3e-3, 1e-2)  # the best for `DROPOUT_METHOD` serves all candidates


@dataclass(frozen=True, slots=True)
class Job:
    """Heads to train: a candidate, with a learning rate and a seed, on a fold."""

    candidate: Candidate
    lr: float
    fold: int
    seed: int


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
) -> Choice:
    """Choose the method that serves retrieval best on held-out parts of the user's own data.

    Linear heads are trained on the frozen features of the clusters, with each candidate of a menu, on all folds but one; the
    texts of the held-out samples then search for their images. The candidate with the highest MRR is chosen, among those with
    a significant gain over in-batch negatives at their best temperature, if there are any; never a control.

    Finished runs are kept in `output`, and the same call continues after them. Memory is O(batch_size^2), besides the features
    of at most `MAX_SAMPLES` samples. All this is our choice.

    Args:
        folder: clusters of the training data, with features.
        output: folder for ``choice.json`` and the runs; None is the folder ``choice`` in the clusters folder.
        methods: see `clip_negatives.choosing.menu_of`.
        fold_by: see `clip_negatives.choosing.question.question_of`.
        fold_values: see `question_of`.
        folds: number of folds, at least 2.
        seeds: runs of each candidate on each fold, at least 1.
        batch_size: maximum batch size.
        steps: steps of a run.

    Raises:
        InputError: a value is out of range, the clusters have no features, or they cannot be divided into folds.
        PluginError: a plugin or an option is unknown.
        ArtifactError: `output` cannot be written.
    """
    for name, value, least in (("seeds", seeds, 1), ("folds", folds, 2), ("batch_size", batch_size, 2), ("steps", steps, 1)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}.")
    if folder.clusters.n_samples < LEAST_SAMPLES:
        raise InputError(f"A choice needs at least {LEAST_SAMPLES} samples, and there are {folder.clusters.n_samples}.")
    menu = menu_of(methods)
    rows = _sampled(folder.clusters.n_samples)
    clusters = part_of(folder.clusters, rows)
    values = None if fold_values is None else [fold_values[row] for row in rows.tolist()]
    question = question_of(clusters, fold_by, values)
    parts = folds_of(question.components, folds)
    n_train = min(len(fold.train) for fold in parts)
    settings = HeadSettings(batch_size=batch_size_for(n_train, batch_size), steps=steps)
    study = _Study(folder, clusters, rows, question, parts, settings, seeds)
    output = output_path(folder.path / FOLDER if output is None else output)
    check_work(output)
    with sole_user(output, wait=False):
        claim_work(output)
        (output / RUNS).mkdir(exist_ok=True)
        outcomes, lr = study.run(menu, output / RUNS)
        choice = answer(menu, outcomes, study.setting(lr), question, study.query_items(), study.clusters_record)
        write_choice(choice, output)
    return choice


def _sampled(n_samples: int) -> Tensor:
    """Return the ids of the compared samples, ascending."""
    if n_samples <= MAX_SAMPLES:
        return torch.arange(n_samples)
    return torch.randperm(n_samples, generator=torch.Generator().manual_seed(0))[:MAX_SAMPLES].sort().values


class _Study:
    """The runs of all candidates on the folds."""

    def __init__(
        self,
        folder: ClustersFolder,
        clusters: Clusters,
        rows: Tensor,
        question: Question,
        folds: Sequence[Fold],
        settings: HeadSettings,
        seeds: int,
    ) -> None:
        self.clusters, self.question, self.folds, self.settings, self.seeds = clusters, question, folds, settings, seeds
        self.clusters_record = clusters_section(folder.manifest)
        self.captions = folder.samples["text"].take(rows.numpy())
        self._fold: tuple[int, Clusters, list[str]] | None = None

    def run(self, menu: Menu, runs: Path) -> tuple[Outcomes, float]:
        """Return the outcomes of all candidates, and their learning rate."""
        tuned = Candidate(Method.parse(DROPOUT_METHOD))
        others = [candidate for candidate in menu.candidates if candidate != tuned]
        places = [(fold, seed) for fold in range(len(self.folds)) for seed in range(self.seeds)]

        def outcomes(candidate: Candidate, lr: float) -> list[list[Outcome]]:
            by_fold: list[list[Outcome]] = [[] for _ in self.folds]
            for fold, seed in places:
                by_fold[fold].append(self._outcome(Job(candidate, lr, fold, seed), runs))
                running.advance()
            return by_fold

        with stage("Training heads", len(places) * (len(others) + len(LEARNING_RATES)), "runs") as running:
            of_rates = {lr: outcomes(tuned, lr) for lr in LEARNING_RATES}
            lr = max(of_rates, key=lambda rate: mean_mrr(of_rates[rate]))
            results = {
                candidate: of_rates[lr] if candidate == tuned else outcomes(candidate, lr) for candidate in menu.candidates
            }
        return results, lr

    def setting(self, lr: float) -> dict[str, Any]:
        """Return the setting of the study, for `Choice.setting`."""
        return {
            "n_samples": self.clusters.n_samples,
            "n_queries": sum(len(fold.held_out) for fold in self.folds),
            "folds": len(self.folds),
            "seeds": self.seeds,
            "steps": self.settings.steps,
            "batch_size": self.settings.batch_size,
            "lr": lr,
        }

    def query_items(self) -> list[Tensor]:
        """Return the item of each query of each fold."""
        return [self.question.items[fold.held_out] for fold in self.folds]

    def _outcome(self, job: Job, runs: Path) -> Outcome:
        """Return the stored outcome of a run, or run it."""
        file = runs / f"{self._digest(job)}.json"
        outcome = read_outcome(file, len(self.folds[job.fold].held_out))
        if outcome is None:
            outcome = self._train(job)
            write_outcome(outcome, file)
        return outcome

    def _digest(self, job: Job) -> str:
        """Return a digest of everything that the outcome of a run depends on."""
        method = job.candidate.method
        fold = self.folds[job.fold].held_out.tolist()
        record = {
            "method": [method.sampler, method.weighting, method.temperature],
            "dropout": job.candidate.dropout,
            "lr": job.lr,
            "seed": job.seed,
            "settings": [self.settings.steps, self.settings.batch_size, self.settings.dim, self.settings.weight_decay],
            "held_out": fold,
            "items": self.question.items[self.folds[job.fold].held_out].tolist(),
            "clusters": self.clusters_record,
            "plugins": plugins_of(method),
            "versions": versions("clip-negatives", "torch"),
        }
        return digest_of({"run": json.dumps(record, sort_keys=True)})[:32]

    def _train(self, job: Job) -> Outcome:
        clusters, captions = self._training_part(job.fold)
        settings = replace(self.settings, lr=job.lr, dropout=job.candidate.dropout)
        heads = train_heads(clusters, job.candidate.method, settings, seed=job.seed, captions=captions)
        held_out = self.folds[job.fold].held_out
        images, texts = heads.embed(*(self.clusters.features_of(name, "A linear head")[held_out] for name in ("image", "text")))
        items = self.question.items[held_out]
        return Outcome(*(first_correct(*pair, items, items)[0] for pair in ((texts, images), (images, texts))))

    def _training_part(self, fold: int) -> tuple[Clusters, list[str]]:
        if self._fold is None or self._fold[0] != fold:
            rows = self.folds[fold].train
            self._fold = fold, part_of(self.clusters, rows), self.captions.take(rows.numpy()).to_pylist()
        return self._fold[1:]
