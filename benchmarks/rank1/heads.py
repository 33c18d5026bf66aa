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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import tomllib
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_negatives import NegativesClipLoss, SamplingContext, catalogue, registry
from clip_negatives.artifacts import codes
from clip_negatives.compare.methods import parse_methods
from clip_negatives.encoders import Encoder, image_encoder, text_encoder
from clip_negatives.refresh import cluster_features

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".benchmarks" / "rank1"
FOLDS = ("validation", "test")
LOW, HIGH, SAMPLES = 2.5, 97.5, 2000


@dataclass(frozen=True)
class Job:
    """Say what one run does."""

    data: str
    fold: str
    method: str
    lr: float
    seed: int


def features(study: dict[str, Any], split: str) -> tuple[pa.Table, Tensor, Tensor]:
    """Return the listings of a split without their pictures, and their frozen features; encoded once."""
    files = feature_files(study)
    if not all(file.exists() for file in files.values()):
        listings = {name: catalogue.load(name) for name in files}
        images = {name: [one.image(row) for row in range(len(one))] for name, one in listings.items()}
        texts = {name: one.column("text") for name, one in listings.items()}
        encoded = (
            _encoded(image_encoder(study["image_encoder"]), images),
            _encoded(text_encoder(study["text_encoder"]), texts),
        )
        for name, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save([part[name] for part in encoded], file)
    image, text = torch.load(files[split])
    return catalogue.load(split).table.drop_columns(["image"]), image, text


def feature_files(study: dict[str, Any]) -> dict[str, Path]:
    """Return where the features of each split are kept."""
    files = {}
    for name in ("train", "test"):
        digest = hashlib.sha256(f"{study['image_encoder']} {study['text_encoder']} {name}".encode()).hexdigest()[:12]
        files[name] = Path(study.get("cache", CACHE)) / f"features-{digest}.pt"
    return files


def _encoded(encoder: Encoder, samples: dict[str, Sequence[Any]]) -> dict[str, Tensor]:
    """Return unit-norm features of each split; what an encoder learns, it learns on the training split."""
    if encoder.learn is not None:
        encoder.learn(samples["train"])
    raw = {name: encoder.encode(some) for name, some in samples.items()}
    project = encoder.fit(raw["train"]) if encoder.fit is not None else None
    return {name: F.normalize((one if project is None else project(one)).float(), dim=1) for name, one in raw.items()}


@dataclass(frozen=True, eq=False)
class Fold:
    """Hold what one fold trains on and is asked."""

    clusters: Any
    query_images: Tensor
    query_texts: Tensor
    near_duplicates: float

    @classmethod
    def of(cls, study: dict[str, Any], data: str, fold: str) -> Fold:
        """Cut a fold out of the catalogue; queries and gallery are one listing of each item that is trained on."""
        table, image, text = features(study, "train")
        chosen = torch.ones(len(table), dtype=torch.bool)
        for column, allowed in (("style", "styles"), ("tone", "tones"), ("group", "groups")):
            if allowed in study["data"][data]:
                chosen &= _among(table, column, study["data"][data][allowed])
        if fold == "validation":
            asked, ask_image, ask_text = table, image, text
            held = _among(table, "style", [study["validation_style"]])
            chosen, candidates = chosen & ~held, held & _among(table, "tone", ["0"])
        else:
            asked, ask_image, ask_text = features(study, "test")
            candidates = torch.ones(len(asked), dtype=torch.bool)
        items = table["item"].to_pylist()
        trained = {items[row] for row in chosen.nonzero().flatten().tolist()}
        rows, seen = [], set()
        for row in candidates.nonzero().flatten().tolist():
            item = asked["item"][row].as_py()
            if item in trained and item not in seen:
                seen.add(item)
                rows.append(row)
        clusters = cluster_features(image[chosen], text[chosen], clusterer="kmeans", seed=0)
        group = codes([items[row] for row in chosen.nonzero().flatten().tolist()])
        texts = codes([table["text"][row].as_py() for row in chosen.nonzero().flatten().tolist()])
        sizes = group.bincount().double()
        duplicates = float((sizes * (sizes - 1)).sum() / len(group) * (study["batch_size"] - 1) / (len(group) - 1))
        return cls(replace(clusters, groups=group, texts=texts), ask_image[rows], ask_text[rows], duplicates)


def train(study: dict[str, Any], fold: Fold, job: Job) -> dict[str, Any]:
    """Train two linear heads with one method and return, for each query, the rank of its item in both directions."""
    method = next(one for one in parse_methods(job.method) if one.name == job.method)
    clusters, dim = fold.clusters, study["dim"]
    context = SamplingContext(
        clusters.n_samples, min(study["batch_size"], clusters.n_samples), seed=job.seed, clusters=clusters
    )
    started = time.perf_counter()
    sampler = registry.create("negative_sampler", method.sampler, context)
    loss = NegativesClipLoss(terms=registry.create("loss_weighting", method.weighting)(clusters))
    prepared, generator = time.perf_counter() - started, torch.Generator().manual_seed(job.seed)
    images, texts = clusters.image_features, clusters.text_features
    heads = nn.ParameterList(torch.randn(part.shape[1], dim, generator=generator) / dim**0.5 for part in (images, texts))
    scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    optimizer = torch.optim.AdamW([{"params": heads, "weight_decay": 0.1}, {"params": [scale], "weight_decay": 0.0}], lr=job.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.lr, total_steps=study["steps"], pct_start=0.1)
    started = time.perf_counter()
    for batch in _batches(sampler, study["steps"]):
        index = torch.tensor(batch)
        x, y = F.normalize(images[index] @ heads[0], dim=1), F.normalize(texts[index] @ heads[1], dim=1)
        optimizer.zero_grad()
        loss(x, y, scale.exp(), index=index).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            scale.clamp_(0, 4.6052)  # as open_clip does
    seconds = (time.perf_counter() - started) / study["steps"]
    with torch.no_grad():
        s = F.normalize(fold.query_texts @ heads[1], dim=1) @ F.normalize(fold.query_images @ heads[0], dim=1).T
    ranks = {name: _ranks(table) for name, table in (("text_to_image", s), ("image_to_text", s.T))}
    return {**ranks, "seconds_per_step": seconds, "prepare_seconds": prepared, "scale": float(scale.detach().exp())}


def _ranks(s: Tensor) -> list[int]:
    """Return the rank of the own entry of each row, 1 the best; equal entries count as before it."""
    own = s.diagonal()[:, None]
    return ((s >= own).sum(1)).tolist()


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


def _among(table: pa.Table, column: str, allowed: Sequence[str]) -> Tensor:
    found = pc.is_in(pc.cast(table[column], pa.string()), value_set=pa.array(allowed))
    return torch.from_numpy(found.to_numpy().astype(bool))


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
        settings = {
            name: value for name, value in study.items() if name not in ("methods", "learning_rates", "test_seeds", "cache")
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.study, self.workers = study, workers
        self.folder = Path(study.get("cache", CACHE)) / f"runs-{digest}"
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
        return self.folder / f"{hashlib.sha256(json.dumps(asdict(job)).encode()).hexdigest()[:20]}.json"


def rank_at(outcome: dict[str, Any], k: int, direction: str = "text_to_image") -> float:
    """Return Rank@k of a run, 0 .. 1."""
    return sum(rank <= k for rank in outcome[direction]) / len(outcome[direction])


def interval(method: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]], k: int, direction: str) -> dict[str, float]:
    """Return the relative gain in Rank@k over the baseline with a 95 % bootstrap interval, over seeds and queries, paired."""
    ours, theirs = ((torch.tensor([one[direction] for one in runs]) <= k).float() for runs in (method, baseline))
    generator = torch.Generator().manual_seed(0)
    seeds, queries = (_resampled(n, generator) for n in ours.shape)
    drawn, drawn_baseline = (((seeds @ hits) * queries).sum(1) for hits in (ours, theirs))
    low, high = (drawn / drawn_baseline - 1).quantile(torch.tensor([LOW, HIGH]) / 100).tolist()
    return {"gain": float(ours.mean() / theirs.mean() - 1), "low": low, "high": high}


def _resampled(n: int, generator: torch.Generator) -> Tensor:
    """Return how often each of n is drawn in n draws with returns, for each sample of the bootstrap, shape (samples, n)."""
    draws = torch.randint(n, (SAMPLES, n), generator=generator)
    return torch.zeros(SAMPLES, n).scatter_add_(1, draws, torch.ones(SAMPLES, n))


def validated(study: dict[str, Any], runs: Runs, data: str) -> tuple[float, dict[str, str]]:
    """Return the learning rate that serves the baseline best, and of each method the candidate that does, on validation."""
    seeds = range(study["validation_seeds"])

    def best(choices: dict[Any, list[Job]]) -> Any:
        found = runs([job for jobs in choices.values() for job in jobs])
        return max(choices, key=lambda choice: sum(rank_at(found[job], 1) for job in choices[choice]))

    rates = {lr: [Job(data, "validation", "in_batch", lr, seed) for seed in seeds] for lr in study["learning_rates"]}
    lr = best(rates)
    chosen = {}
    for name, candidates in study["methods"].items():
        jobs = {spec: [Job(data, "validation", spec, lr, seed) for seed in seeds] for spec in candidates}
        chosen[name] = best(jobs) if len(candidates) > 1 else candidates[0]
    return lr, chosen


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
    for split in ("train", "test"):
        features(study, split)  # once, before the processes ask for it
    told = {name: value for name, value in study.items() if name != "cache"}
    result: dict[str, Any] = {"study": told, "data": {}}
    for data in study["data"]:
        lr, chosen = validated(study, runs, data)
        jobs = {
            name: [Job(data, "test", spec, lr, seed) for seed in range(study["test_seeds"])] for name, spec in chosen.items()
        }
        found = runs([job for each in jobs.values() for job in each])
        baseline = [found[job] for job in jobs["in_batch"]]
        rows = {}
        for name, each in jobs.items():
            outcomes = [found[job] for job in each]
            rows[name] = {"candidate": chosen[name], "seconds_per_step": min(one["seconds_per_step"] for one in outcomes)}
            for direction in ("text_to_image", "image_to_text"):
                for k in (1, 5, 10):
                    values = torch.tensor([rank_at(one, k, direction) for one in outcomes], dtype=torch.float64)
                    figures = {"mean": float(values.mean()), "spread": float(values.std())}
                    rows[name][f"{direction}_rank_{k}"] = figures | interval(outcomes, baseline, k, direction)
        test = Fold.of(study, data, "test")
        result["data"][data] = {
            "lr": lr,
            "samples": test.clusters.n_samples,
            "queries": len(test.query_texts),
            "near_duplicates_per_anchor": test.near_duplicates,
            "methods": rows,
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
