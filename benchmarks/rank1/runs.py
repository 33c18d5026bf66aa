"""Cached runs of heads; the file name of a run is a digest of everything that its outcome depends on."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
from folds import Fold, cache_of
from head_training import Job, train
from scores import rank_at

import clip_negatives
from clip_negatives import Method, Recipe
from clip_negatives.host import registry
from clip_negatives.storage.ownership import replaced_file

SETTINGS = ("image_encoder", "text_encoder", "dim", "batch_size", "steps", "validation_style")
"""Settings that the outcome of every run depends on."""

OF_CLUSTERS = ("clusterer", "refresh")  # settings that the outcome of a run depends on if its method uses clusters
NOT_OF_A_RUN = ("lr", "learning_rates", "methods", "tried")  # settings of a data set that no single run depends on
LOSS = ("anchor_loss.py", "heads/*.py", "interfaces.py", "losses/**/*.py", "clustering/*.py", "sampling.py", "terms.py")
"""Sources of the package that the outcome of a run depends on, in addition to its plugins."""

HERE = ("folds.py", "head_training.py", "scores.py")  # sources of this folder that the outcome of a run depends on
_FOLDS: dict[tuple[str, str], Fold] = {}


def work(task: tuple[dict[str, Any], Job]) -> tuple[Job, dict[str, Any]]:
    """Run one job with one thread."""
    study, job = task
    torch.set_num_threads(1)
    key = job.data, job.fold
    if key not in _FOLDS:
        _FOLDS.clear()
        _FOLDS[key] = Fold.of(study, *key)
    return job, train(study, _FOLDS[key], job)


class Runs:
    """Cache of the outcomes of jobs."""

    def __init__(self, study: dict[str, Any], workers: int) -> None:
        self.study, self.workers = study, workers
        self.folder = cache_of(study) / "heads"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pool: Pool | None = None

    def __call__(self, jobs: Sequence[Job]) -> dict[Job, dict[str, Any]]:
        """Return the outcome of each job; run the jobs that are not cached."""
        todo = {self._file(job): job for job in jobs if not self._file(job).exists()}
        if todo:
            self._pool = self._pool or multiprocessing.get_context("spawn").Pool(self.workers)
            tasks = [(self.study, job) for job in todo.values()]
            for number, (job, outcome) in enumerate(self._pool.imap(work, tasks)):
                with replaced_file(self._file(job)) as partial:
                    partial.write_text(json.dumps(outcome))
                print(f"{number + 1} of {len(todo)}: {job}, Rank@1 {100 * rank_at(outcome, 1):.1f}", flush=True)
        return {job: json.loads(self._file(job).read_text()) for job in jobs}

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    def _file(self, job: Job) -> Path:
        """Return the cache file of a job."""
        settings = {name: self.study[name] for name in SETTINGS}
        data = {name: value for name, value in self.study["data"][job.data].items() if name not in NOT_OF_A_RUN}
        clusterer = None
        if looks_at_clusters(job.method):
            clusterer = data.setdefault("clusterer", Recipe.clusterer)
        else:
            data = {name: value for name, value in data.items() if name not in OF_CLUSTERS}
        whole = json.dumps([settings, asdict(job) | {"data": data}, sources(job.method, clusterer)], sort_keys=True)
        return self.folder / f"{hashlib.sha256(whole.encode()).hexdigest()[:20]}.json"


def looks_at_clusters(method: str) -> bool:
    """Return whether a method depends on the clusters."""
    return any(plugin.requires_clusters for plugin in _plugins(method))


def _plugins(method: str, clusterer: str | None = None) -> list[registry.Registration]:
    plugins = [*Method.parse(method).plugins]
    return plugins if clusterer is None else [*plugins, registry.default_registry().resolve("clusterer", clusterer)[0]]


@functools.cache
def sources(method: str, clusterer: str | None) -> str:
    """Return a digest of the code of a method and of the version of the package."""
    home, here = Path(clip_negatives.__file__).parent, Path(__file__).parent
    files = [*(file for pattern in LOSS for file in sorted(home.glob(pattern))), *(here / name for name in HERE)]
    for plugin in _plugins(method, clusterer):
        module = import_module(plugin.factory.__module__.rpartition(".")[0])
        files += sorted(Path(str(module.__file__)).parent.glob("**/*.py"))
    digest = hashlib.sha256(clip_negatives.__version__.encode())
    for file in files:
        digest.update(code_of(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def code_of(text: str) -> str:
    """Return the code of a module without its layout, comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
