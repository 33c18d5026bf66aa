"""Measure which incorrect pairs the gradient of a method pushes apart: python benchmarks/rank1/gradients.py --output FILE.

Heads are trained with in-batch negatives. Before the first step, midway and at the end, the gradient of every method is
computed on the same heads and random batches. The positive part of the gradient to the logits pushes incorrect pairs apart. The
share that falls on false negatives (pairs of one item) is misled. The gradient to the heads is compared with that of a loss
that knows the items and leaves their pairs out.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from folds import Fold, batch_size
from head_training import Job, train
from run import write_json
from studies import BASELINE, parse
from torch import Tensor

from clip_negatives import Method, NegativesClipLoss, SamplingContext
from clip_negatives.heads import LinearHeads
from clip_negatives.step import BatchSamples

ORACLE = "id_mask:by=group"
METHODS = (BASELINE, "random_reduction", "default", "paper", "weight:by=either", "known_different:hardness=0.1,gamma=2.0")
METHODS += ("gist:guide=both,margin=0.2", "hcl:hardness=0.25,positive_rate=0.001")
"""The default, the paper's method as we read it, and rivals that were better and worse in the study."""

FIGURES = ("false_push", "push", "agreement")
BATCHES = 8
SEEDS = 3


class Gradients:
    """Measurement of the gradients of all methods, at given steps of a training; `seed` is that of the batches."""

    def __init__(self, study: dict[str, Any], data: str, fold: Fold, seed: int) -> None:
        self.fold, self.steps = fold, {0: "start", study["steps"] // 2: "middle", study["steps"]: "end"}
        size = min(batch_size(study, data), fold.clusters.n_samples)
        # The training has other batches than those of this seed.
        context = SamplingContext.of(None, size, n_samples=fold.clusters.n_samples, seed=seed + 1000)
        sampler = Method.parse(BASELINE).create_sampler(context)
        self.batches = [torch.tensor(batch) for batch in itertools.islice(sampler, BATCHES)]
        self.losses = {name: self._loss(name) for name in (*METHODS, ORACLE)}
        self.found: dict[str, dict[str, dict[str, float]]] = {}

    def __call__(self, step: int, heads: LinearHeads) -> None:
        """Measure, if it is one of the steps."""
        if step in self.steps:
            rows = [self._of_batch(heads, index) for index in self.batches]
            self.found[self.steps[step]] = {
                name: {figure: sum(row[name][figure] for row in rows) / len(rows) for figure in FIGURES} for name in METHODS
            }

    def _loss(self, name: str) -> NegativesClipLoss:
        return NegativesClipLoss(terms=Method.parse(name).create_weighting()(self.fold.clusters), backend="torch")

    def _of_batch(self, heads: LinearHeads, index: Tensor) -> dict[str, dict[str, float]]:
        groups = self.fold.clusters.groups[index]
        false = (groups[:, None] == groups[None, :]).fill_diagonal_(False)
        oracle = self._to_heads(ORACLE, heads, index)
        rows = {}
        for name in METHODS:
            push = self._to_logits(name, heads, index).fill_diagonal_(0.0).clamp(min=0.0)
            total = float(push.sum())
            rows[name] = {
                "false_push": float(push[false].sum()) / total,
                "push": total,
                "agreement": float(F.cosine_similarity(self._to_heads(name, heads, index), oracle, dim=0)),
            }
        return rows

    def _to_heads(self, name: str, heads: LinearHeads, index: Tensor) -> Tensor:
        """Return the gradient of a method to both heads, as one vector."""
        images, texts = self.fold.clusters.image_features[index], self.fold.clusters.text_features[index]
        loss = self.losses[name](*heads(images, texts), heads.log_scale.exp(), samples=BatchSamples(ids=index))
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, [heads.image, heads.text])])

    def _to_logits(self, name: str, heads: LinearHeads, index: Tensor) -> Tensor:
        """Return the gradient of a method to the logits, shape (B, B), times B."""
        with torch.no_grad():
            x, y = heads(self.fold.clusters.image_features[index], self.fold.clusters.text_features[index])
        # Cosines as image features, and unit vectors as text features, give the same logits.
        cosines = (x @ y.T).requires_grad_()
        scale = heads.log_scale.detach().exp()
        loss = self.losses[name](cosines, torch.eye(len(index)), scale, samples=BatchSamples(ids=index))
        (gradient,) = torch.autograd.grad(loss, [cosines])
        return gradient / scale * len(index)


def measured(study: dict[str, Any], data: str, fold: Fold) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return mean and standard deviation over seeds of each figure, by moment and method."""
    found, lr = [], study["data"][data]["lr"]
    for seed in range(SEEDS):
        gradients = Gradients(study, data, fold, seed)
        train(study, fold, Job(data, "test", BASELINE, lr, seed), gradients)
        found.append(gradients.found)

    def over_seeds(moment: str, name: str, figure: str) -> dict[str, float]:
        values = torch.tensor([one[moment][name][figure] for one in found], dtype=torch.float64)
        return {"mean": float(values.mean()), "spread": float(values.std())}

    return {
        moment: {name: {figure: over_seeds(moment, name, figure) for figure in FIGURES} for name in METHODS}
        for moment in found[0]
    }


def main() -> None:
    """Measure every data set of the study and write the result file."""
    options, study = parse(argparse.ArgumentParser(description=__doc__), "default.toml")  # it has the learning rates
    result = {}
    for data in study["data"]:
        fold = Fold.of(study, data, "test")
        result[data] = {"batch_size": batch_size(study, data), "moments": measured(study, data, fold)}
        print(f"{data}: done", flush=True)
    write_json(options.output, {"seeds": SEEDS, "data": result})


if __name__ == "__main__":
    main()
