"""Screen methods with linear heads on frozen features: python benchmarks/rank1/heads.py [--output FILE] [--workers N].

What is chosen is chosen on the validation seller: the learning rate for the baseline, then of each method the best candidate.
The test seller is looked at once, by what was chosen. Every finished run is kept; a second call goes on after it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomllib
import torch
import torch.nn.functional as F
from folds import CACHE, EMOJI, Fold, batch_size, cache_of, features
from scores import interval, rank_at, ranks
from torch import nn

from clip_negatives import NegativesClipLoss, SamplingContext, registry
from clip_negatives.compare.methods import parse_methods
from clip_negatives.extra_texts import texts_per_image

HERE = Path(__file__).parent
SETTINGS = ("image_encoder", "text_encoder", "dim", "batch_size", "steps", "validation_style")
"""What the outcome of every run depends on."""

TEMPERATURE = 0.07
"""Where a learned temperature starts, as in open_clip."""


@dataclass(frozen=True)
class Job:
    """Say what one run does.

    Attributes:
        data: name in the study.
        fold: "validation" or "test".
        method: as `clip-negatives compare` takes it.
        lr: learning rate.
        seed: of heads and batches.
    """

    data: str
    fold: str
    method: str
    lr: float
    seed: int


def train(study: dict[str, Any], fold: Fold, job: Job) -> dict[str, Any]:
    """Train two linear heads with one method and return, for each query, the rank of its item in both directions."""
    method = next(one for one in parse_methods(job.method) if one.name == job.method)
    clusters, dim = fold.clusters, study["dim"]
    size = min(batch_size(study, job.data), clusters.n_samples)
    context = SamplingContext(clusters.n_samples, size, seed=job.seed, clusters=clusters, captions=fold.captions)
    started = time.perf_counter()
    sampler = registry.create("negative_sampler", method.sampler, context)
    terms = registry.create("loss_weighting", method.weighting)(clusters)
    loss = NegativesClipLoss(terms=terms, extra_texts=texts_per_image(sampler))
    prepared, generator = time.perf_counter() - started, torch.Generator().manual_seed(job.seed)
    images, texts = clusters.image_features, clusters.text_features
    heads = nn.ParameterList(torch.randn(part.shape[1], dim, generator=generator) / dim**0.5 for part in (images, texts))
    held = method.temperature
    scale = nn.Parameter(-torch.tensor(held or TEMPERATURE).log(), requires_grad=held is None)
    optimizer = torch.optim.AdamW([{"params": heads, "weight_decay": 0.1}, {"params": [scale], "weight_decay": 0.0}], lr=job.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.lr, total_steps=study["steps"], pct_start=0.1)
    started = time.perf_counter()
    lines_of = _Lines(sampler, fold.captions)
    loss.text_ids = lambda: lines_of.ids
    for batch in _batches(sampler, study["steps"]):
        index = torch.tensor(batch)
        lines = lines_of(batch) if loss.extra_texts else index
        x, y = F.normalize(images[index] @ heads[0], dim=1), F.normalize(texts[lines] @ heads[1], dim=1)
        optimizer.zero_grad()
        loss(x, y, scale.exp(), index=index).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            scale.clamp_(0, 4.6052)  # as open_clip does
    seconds = (time.perf_counter() - started) / study["steps"]
    with torch.no_grad():
        s = F.normalize(fold.query_texts @ heads[1], dim=1) @ F.normalize(fold.query_images @ heads[0], dim=1).T
    return {
        "text_to_image": ranks(s),
        "image_to_text": ranks(s.T),
        "seconds_per_step": seconds,
        "prepare_seconds": prepared,
        "scale": float(scale.detach().exp()),
    }


class _Lines:
    """Find the texts that a sampler adds, which are texts of the data, among the frozen features.

    Attributes:
        ids: a number for each text of the last batch and those that come with it, shape (B, 1 + E).
    """

    def __init__(self, sampler: Any, captions: Sequence[str]) -> None:
        self.sampler, self.captions = sampler, captions
        self.rows = {text: row for row, text in enumerate(captions)}
        self.ids = torch.empty(0)

    def __call__(self, batch: list[int]) -> torch.Tensor:
        """Return the row of each text of a batch with those that come with it behind it, shape ((1 + E) B,)."""
        own = [self.rows[self.captions[index]] for index in batch]
        further = [self.rows[text] for text in self.sampler.extra_texts(batch)]
        self.ids = torch.cat([torch.tensor(own)[:, None], torch.tensor(further).view(len(batch), -1)], dim=1)
        return self.ids.flatten()


def _batches(sampler: Any, steps: int) -> Iterator[list[int]]:
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for batch in sampler:
            if steps == 0:
                return
            steps -= 1
            yield batch
        epoch += 1


_FOLDS: dict[tuple[str, str], Fold] = {}


def _work(task: tuple[dict[str, Any], Job]) -> tuple[Job, dict[str, Any]]:
    """Do one job in a process of its own, with one thread."""
    study, job = task
    torch.set_num_threads(1)
    key = job.data, job.fold
    if key not in _FOLDS:
        _FOLDS.clear()
        _FOLDS[key] = Fold.of(study, *key)
    return job, train(study, _FOLDS[key], job)


class Runs:
    """Run jobs, those that are not done yet, and keep each outcome."""

    def __init__(self, study: dict[str, Any], workers: int) -> None:
        self.study, self.workers = study, workers
        self.folder = cache_of(study) / "heads"
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, jobs: Sequence[Job]) -> dict[Job, dict[str, Any]]:
        """Return the outcome of each job."""
        todo = [job for job in jobs if not self._file(job).exists()]
        if not todo:
            return {job: json.loads(self._file(job).read_text()) for job in jobs}
        with multiprocessing.get_context("spawn").Pool(self.workers) as pool:
            for number, (job, outcome) in enumerate(pool.imap(_work, [(self.study, job) for job in todo])):
                partial = self._file(job).with_suffix(".partial")
                partial.write_text(json.dumps(outcome))
                partial.rename(self._file(job))
                print(f"{number + 1} of {len(todo)}: {job}, Rank@1 {100 * rank_at(outcome, 1):.1f}", flush=True)
        return {job: json.loads(self._file(job).read_text()) for job in jobs}

    def _file(self, job: Job) -> Path:
        """Return where the outcome of a job is kept; it is named by all that the outcome depends on."""
        settings = {name: self.study[name] for name in SETTINGS} | {"data": self.study["data"][job.data]}
        digest = hashlib.sha256(json.dumps([settings, asdict(job)], sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / f"{digest}.json"


@dataclass(frozen=True)
class Validated:
    """Hold what was seen on validation.

    Attributes:
        lr: learning rate that serves the baseline best.
        chosen: of each method, the candidate that serves best.
        gains: of every candidate that was looked at, the relative gain in Rank@1 over the baseline.
    """

    lr: float
    chosen: dict[str, str]
    gains: dict[str, float]


def validated(study: dict[str, Any], runs: Runs, data: str) -> Validated:
    """Choose on validation."""
    seeds = range(study["validation_seeds"])

    def scores(jobs: dict[Any, list[Job]]) -> dict[Any, float]:
        found = runs([job for each in jobs.values() for job in each])
        return {choice: sum(rank_at(found[job], 1) for job in each) for choice, each in jobs.items()}

    rates = scores({lr: [Job(data, "validation", "in_batch", lr, seed) for seed in seeds] for lr in study["learning_rates"]})
    lr = max(rates, key=rates.__getitem__)
    told = [spec for candidates in study["methods"].values() if len(candidates) > 1 for spec in candidates]
    told += study.get("tried", [])
    found = scores({spec: [Job(data, "validation", spec, lr, seed) for seed in seeds] for spec in dict.fromkeys(told)})
    chosen = {
        name: max(candidates, key=found.__getitem__) if len(candidates) > 1 else candidates[0]
        for name, candidates in study["methods"].items()
    }
    return Validated(lr, chosen, {spec: score / rates[lr] - 1 for spec, score in found.items()})


def main() -> None:
    """Run the study and write its result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=HERE / "heads.toml")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of features and finished runs")
    options = parser.parse_args()
    study = tomllib.loads(options.study.read_text()) | {"cache": str(options.cache)}
    runs = Runs(study, options.workers)
    for data in study["data"].values():
        features(study, data.get("source", EMOJI))  # once, before the processes ask for them
    told = {name: value for name, value in study.items() if name != "cache"}
    result: dict[str, Any] = {"study": told, "data": {}}
    for data in study["data"]:
        seen = validated(study, runs, data)
        jobs = {
            name: [Job(data, "test", spec, seen.lr, seed) for seed in range(study["test_seeds"])]
            for name, spec in seen.chosen.items()
        }
        found = runs([job for each in jobs.values() for job in each])
        baseline = [found[job] for job in jobs["in_batch"]]
        rows = {}
        for name, each in jobs.items():
            outcomes = [found[job] for job in each]
            rows[name] = {"candidate": seen.chosen[name], "seconds_per_step": min(one["seconds_per_step"] for one in outcomes)}
            for direction in ("text_to_image", "image_to_text"):
                for k in (1, 5, 10):
                    values = torch.tensor([rank_at(one, k, direction) for one in outcomes], dtype=torch.float64)
                    figures = {"mean": float(values.mean()), "spread": float(values.std())}
                    rows[name][f"{direction}_rank_{k}"] = figures | interval(outcomes, baseline, k, direction)
        test = Fold.of(study, data, "test")
        result["data"][data] = {
            "lr": seen.lr,
            "samples": test.clusters.n_samples,
            "queries": len(test.query_texts),
            "near_duplicates_per_anchor": test.near_duplicates,
            "methods": rows,
            "validation": seen.gains,
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
