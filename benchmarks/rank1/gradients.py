"""See which incorrect pairs the gradient of a method pushes apart: python benchmarks/rank1/gradients.py --output FILE.

Heads are trained with in-batch negatives. Before the first step, midway and at the end every method is asked, on the same heads
and the same batches of a random order, what it would do next. Of its gradient to the logits, what is positive pushes an
incorrect pair apart; the share of that push that falls on false negatives (pairs of one item) is misled. Its gradient to the
heads is held against that of a loss that knows the items and leaves their pairs out.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import tomllib
import torch
import torch.nn.functional as F
from folds import CACHE, Fold, batch_size
from head_training import Heads, Job, method_of, train
from torch import Tensor

from clip_negatives import NegativesClipLoss, SamplingContext, registry
from clip_negatives.atomic import replaced_file

HERE = Path(__file__).parent
BASELINE = "in_batch"
ORACLE = "id_mask:by=group"
METHODS = (
    BASELINE,
    "random_reduction",
    "default",
    "paper",
    "weight:by=either",
    "known_different:hardness=0.1,gamma=2.0",
    "gist:guide=both,margin=0.2",
    "hcl:hardness=0.25,positive_rate=0.001",
)
"""The default, the paper's reading, and rivals that went up and that went down in the study."""

FIGURES = ("false_push", "push", "agreement")
BATCHES = 8
SEEDS = 3


class Gradients:
    """Measure what the gradients of the methods do, at given steps of a training.

    Args:
        study: the study.
        data: data set of the study.
        fold: what is trained on.
        seed: of the batches.
    """

    def __init__(self, study: dict[str, Any], data: str, fold: Fold, seed: int) -> None:
        self.fold, self.steps = fold, {0: "start", study["steps"] // 2: "middle", study["steps"]: "end"}
        size = min(batch_size(study, data), fold.clusters.n_samples)
        context = SamplingContext(fold.clusters.n_samples, size, seed=seed + 1000)  # batches that the training has not seen so
        sampler = registry.create("negative_sampler", BASELINE, context)
        self.batches = [torch.tensor(batch) for batch in itertools.islice(sampler, BATCHES)]
        self.losses = {name: self._loss(name) for name in (*METHODS, ORACLE)}
        self.found: dict[str, dict[str, dict[str, float]]] = {}

    def __call__(self, step: int, heads: Heads) -> None:
        """Measure, where it is time to."""
        if step in self.steps:
            rows = [self._of_batch(heads, index) for index in self.batches]
            self.found[self.steps[step]] = {
                name: {figure: sum(row[name][figure] for row in rows) / len(rows) for figure in FIGURES} for name in METHODS
            }

    def _loss(self, name: str) -> NegativesClipLoss:
        weighting = registry.create("loss_weighting", method_of(name).weighting)
        return NegativesClipLoss(terms=weighting(self.fold.clusters), backend="torch")

    def _of_batch(self, heads: Heads, index: Tensor) -> dict[str, dict[str, float]]:
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

    def _to_heads(self, name: str, heads: Heads, index: Tensor) -> Tensor:
        """Return the gradient of a method to both heads, as one vector."""
        images, texts = self.fold.clusters.image_features[index], self.fold.clusters.text_features[index]
        loss = self.losses[name](*heads(images, texts), heads.scale.exp(), index=index)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, [heads.image, heads.text])])

    def _to_logits(self, name: str, heads: Heads, index: Tensor) -> Tensor:
        """Return the gradient of a method to the logits, shape (B, B), in units of one of B anchors."""
        with torch.no_grad():
            x, y = heads(self.fold.clusters.image_features[index], self.fold.clusters.text_features[index])
        # Cosines in the place of the images' features, against unit vectors: the loss sees the very same logits.
        cosines = (x @ y.T).requires_grad_()
        scale = heads.scale.detach().exp()
        loss = self.losses[name](cosines, torch.eye(len(index)), scale, index=index)
        (gradient,) = torch.autograd.grad(loss, [cosines])
        return gradient / scale * len(index)


def measured(study: dict[str, Any], data: str, fold: Fold) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return of each moment, method and figure the mean over seeds and the spread."""
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
    """Measure every data set of the study, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=HERE / "default.toml", help="one that says the learning rates")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of features")
    options = parser.parse_args()
    study = tomllib.loads(options.study.read_text()) | {"cache": str(options.cache)}
    result = {}
    for data in study["data"]:
        fold = Fold.of(study, data, "test")
        result[data] = {"batch_size": batch_size(study, data), "moments": measured(study, data, fold)}
        print(f"{data}: done", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(options.output) as partial:
        partial.write_text(json.dumps({"seeds": SEEDS, "data": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
