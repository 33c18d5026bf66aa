"""Train linear heads on frozen features with one method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from folds import Fold, batch_size
from run import forget_peak, memory_mib
from scores import ranks
from torch import Tensor, nn

from clip_negatives import Method, NegativesClipLoss, Recipe, SamplingContext
from clip_negatives.batches.extra_texts import texts_per_image
from clip_negatives.clustering.fit import cluster_features
from clip_negatives.interfaces import Clusters
from clip_negatives.step import BatchSamples

TEMPERATURE = 0.07  # initial value of a learned temperature, as in open_clip
SIGMOID_START = {"temperature": 0.1, "bias": -10.0}  # initial values of SigLIP, as in its paper and in open_clip


@dataclass(frozen=True)
class Job:
    """One run."""

    data: str  # name of the data set in the study
    fold: str  # "validation" or "test"
    method: str  # spec of the method, as `clip-negatives compare` takes it
    lr: float  # learning rate
    seed: int  # seed of heads and batches


class Heads(nn.Module):
    """Linear heads for images and texts, with a temperature (None learns it) and, for a sigmoid loss, a bias."""

    def __init__(self, sizes: tuple[int, int], dim: int, seed: int, temperature: float | None, *, sigmoid: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.image, self.text = (nn.Parameter(torch.randn(size, dim, generator=generator) / dim**0.5) for size in sizes)
        start = temperature or (SIGMOID_START["temperature"] if sigmoid else TEMPERATURE)
        self.scale = nn.Parameter(-torch.tensor(start).log(), requires_grad=temperature is None)
        self.bias = nn.Parameter(torch.tensor(SIGMOID_START["bias"])) if sigmoid else None

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimizer; only matrices have weight decay."""
        others = [self.scale, *([] if self.bias is None else [self.bias])]
        return [{"params": [self.image, self.text], "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of images and texts, unit norm."""
        return F.normalize(images @ self.image, dim=1), F.normalize(texts @ self.text, dim=1)


class Setting:
    """Sampler and loss of a method, for clusters that may be replaced."""

    def __init__(self, study: dict[str, Any], fold: Fold, job: Job) -> None:
        self.how, self.fold, self.job, self.method = study["data"][job.data], fold, job, Method.parse(job.method)
        self.size = min(batch_size(study, job.data), fold.clusters.n_samples)
        self.sampler = self._sampler(fold.clusters)
        weighting = self.method.create_weighting()
        self.weighting, self.sigmoid = weighting, getattr(weighting, "requires_logit_bias", False)
        self.loss = NegativesClipLoss(terms=weighting(fold.clusters), extra_texts=texts_per_image(self.sampler))

    def _sampler(self, clusters: Clusters) -> Any:
        context = SamplingContext.of(clusters, self.size, seed=self.job.seed, captions=self.fold.captions)
        return self.method.create_sampler(context)

    @torch.no_grad()
    def refresh(self, heads: Heads, epoch: int) -> None:
        """Cluster the embeddings of the training data, and continue with these clusters."""
        old = self.fold.clusters
        images, texts = heads(old.image_features, old.text_features)
        clusterer = self.how.get("clusterer", Recipe.clusterer)
        found = cluster_features(images, texts, clusterer=clusterer, seed=self.job.seed, epoch=epoch)
        found = replace(found, texts=old.texts, groups=old.groups)
        self.sampler = self._sampler(found)
        self.loss.set_terms(self.weighting(found))

    def batches(self, heads: Heads, steps: int) -> Iterator[list[int]]:
        """Yield this many batches, epoch after epoch."""
        every, epoch, done = self.how.get("refresh"), 0, 0
        while True:
            if every and epoch and epoch % every == 0:
                self.refresh(heads, epoch)
            self.sampler.set_epoch(epoch)
            for batch in self.sampler:
                if done == steps:
                    return
                done += 1
                yield batch
            epoch += 1


def train(
    study: dict[str, Any], fold: Fold, job: Job, watch: Callable[[int, Heads], None] = lambda step, heads: None
) -> dict[str, Any]:
    """Train two linear heads with one method and return the rank of the item of each query in both directions.

    `watch` is called with the number of finished steps and the heads, before the first step and after each.
    """
    forget_peak()
    started = time.perf_counter()
    setting = Setting(study, fold, job)
    prepared, steps = time.perf_counter() - started, study["steps"]
    images, texts, loss = fold.clusters.image_features, fold.clusters.text_features, setting.loss
    sizes = images.shape[1], texts.shape[1]
    heads = Heads(sizes, study["dim"], job.seed, setting.method.temperature, sigmoid=setting.sigmoid)
    optimizer = torch.optim.AdamW(heads.groups(), lr=job.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.lr, total_steps=steps, pct_start=0.1)
    started = time.perf_counter()
    lines_of = _Lines(setting, fold.captions)
    watch(0, heads)
    for step, batch in enumerate(setting.batches(heads, steps), start=1):
        index = torch.tensor(batch)
        text_ids = lines_of(batch) if loss.extra_texts else None
        lines = index if text_ids is None else text_ids.flatten()
        x, y = heads(images.index_select(0, index), texts.index_select(0, lines))
        optimizer.zero_grad()
        loss(x, y, heads.scale.exp(), heads.bias, samples=BatchSamples(ids=index, text_ids=text_ids)).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            heads.scale.clamp_(0, 4.6052)  # as open_clip does
        watch(step, heads)
    seconds = (time.perf_counter() - started) / steps
    with torch.no_grad():
        found = heads(fold.query_images, fold.query_texts)
        s = found[1] @ found[0].T
    return {
        "text_to_image": ranks(s),
        "image_to_text": ranks(s.T),
        "seconds_per_step": seconds,
        "prepare_seconds": prepared,
        "clustering_seconds": fold.clustering_seconds,
        "peak_memory_mib": memory_mib(),
        "temperature": float((-heads.scale.detach()).exp()),
    }


class _Lines:
    """Rows of the texts that a sampler adds to a batch; they are texts of the data, with frozen features."""

    def __init__(self, setting: Setting, captions: Sequence[str]) -> None:
        self.setting, self.captions = setting, captions
        self.rows = {text: row for row, text in enumerate(captions)}

    def __call__(self, batch: list[int]) -> Tensor:
        """Return the row of each text of a batch, and the rows of the texts added to it, shape (B, 1 + E)."""
        own = [self.rows[self.captions[index]] for index in batch]
        further = [self.rows[text] for text in self.setting.sampler.extra_texts(batch)]
        return torch.cat([torch.tensor(own)[:, None], torch.tensor(further).view(len(batch), -1)], dim=1)
