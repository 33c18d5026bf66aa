"""Train linear heads on frozen features with one method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from folds import Fold, batch_size
from scores import ranks
from torch import Tensor, nn

from clip_negatives import NegativesClipLoss, SamplingContext, registry
from clip_negatives.compare.methods import Method, parse_methods
from clip_negatives.extra_texts import texts_per_image
from clip_negatives.interfaces import Clusters
from clip_negatives.refresh import cluster_features

TEMPERATURE = 0.07
"""Where a learned temperature starts, as in open_clip."""

SIGMOID_START = {"temperature": 0.1, "bias": -10.0}
"""Where SigLIP starts, as in its paper and in open_clip."""


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


def method_of(name: str) -> Method:
    """Return a method by its name."""
    return next(one for one in parse_methods(name) if one.name == name)


class Heads(nn.Module):
    """Map images and texts into one space, with a temperature and, for a sigmoid loss, a bias.

    Args:
        sizes: length of the features of an image and of a text.
        dim: of the shared space.
        seed: of the heads.
        temperature: what the temperature is held at; None where it is learned.
        sigmoid: whether the loss asks for a bias.
    """

    def __init__(self, sizes: tuple[int, int], dim: int, seed: int, temperature: float | None, *, sigmoid: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.image, self.text = (nn.Parameter(torch.randn(size, dim, generator=generator) / dim**0.5) for size in sizes)
        start = temperature or (SIGMOID_START["temperature"] if sigmoid else TEMPERATURE)
        self.scale = nn.Parameter(-torch.tensor(start).log(), requires_grad=temperature is None)
        self.bias = nn.Parameter(torch.tensor(SIGMOID_START["bias"])) if sigmoid else None

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameters as an optimizer takes them: matrices decay."""
        others = [self.scale, *([] if self.bias is None else [self.bias])]
        return [{"params": [self.image, self.text], "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the heads make of images and texts, unit norm."""
        return F.normalize(images @ self.image, dim=1), F.normalize(texts @ self.text, dim=1)


class Setting:
    """Hold the sampler and the loss of a method, made for clusters, and make them anew for others."""

    def __init__(self, study: dict[str, Any], fold: Fold, job: Job) -> None:
        self.how, self.fold, self.job, self.method = study["data"][job.data], fold, job, method_of(job.method)
        self.size = min(batch_size(study, job.data), fold.clusters.n_samples)
        self.sampler = self._sampler(fold.clusters)
        weighting = registry.create("loss_weighting", self.method.weighting)
        self.weighting, self.sigmoid = weighting, getattr(weighting, "requires_logit_bias", False)
        self.loss = NegativesClipLoss(terms=weighting(fold.clusters), extra_texts=texts_per_image(self.sampler))

    def _sampler(self, clusters: Clusters) -> Any:
        how = {"seed": self.job.seed, "clusters": clusters, "captions": self.fold.captions}
        context = SamplingContext(clusters.n_samples, self.size, **how)
        return registry.create("negative_sampler", self.method.sampler, context)

    @torch.no_grad()
    def refresh(self, heads: Heads, epoch: int) -> None:
        """Cluster what the heads make of the training data, and go on with those clusters."""
        old = self.fold.clusters
        images, texts = heads(old.image_features, old.text_features)
        clusterer = self.how.get("clusterer", "kmeans")
        found = cluster_features(images, texts, clusterer=clusterer, seed=self.job.seed, epoch=epoch)
        found = replace(found, texts=old.texts, groups=old.groups)
        self.sampler = self._sampler(found)
        self.loss.set_terms(self.weighting(found))

    def batches(self, heads: Heads, steps: int) -> Iterator[list[int]]:
        """Yield as many batches, epoch after epoch."""
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
    """Train two linear heads with one method and return, for each query, the rank of its item in both directions.

    `watch` is called with the number of steps that are done and the heads, before the first step and after each.
    """
    _forget_peak()
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
    loss.text_ids = lambda: lines_of.ids
    watch(0, heads)
    for step, batch in enumerate(setting.batches(heads, steps), start=1):
        index = torch.tensor(batch)
        lines = lines_of(batch) if loss.extra_texts else index
        x, y = heads(images.index_select(0, index), texts.index_select(0, lines))
        optimizer.zero_grad()
        loss(x, y, heads.scale.exp(), heads.bias, index=index).backward()
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
        "peak_memory_mib": _peak_memory(),
        "temperature": float((-heads.scale.detach()).exp()),
    }


class _Lines:
    """Find the texts that a sampler adds, which are texts of the data, among the frozen features.

    Attributes:
        ids: a number for each text of the last batch and those that come with it, shape (B, 1 + E).
    """

    def __init__(self, setting: Setting, captions: Sequence[str]) -> None:
        self.setting, self.captions = setting, captions
        self.rows = {text: row for row, text in enumerate(captions)}
        self.ids = torch.empty(0)

    def __call__(self, batch: list[int]) -> Tensor:
        """Return the row of each text of a batch with those that come with it behind it, shape ((1 + E) B,)."""
        own = [self.rows[self.captions[index]] for index in batch]
        further = [self.rows[text] for text in self.setting.sampler.extra_texts(batch)]
        self.ids = torch.cat([torch.tensor(own)[:, None], torch.tensor(further).view(len(batch), -1)], dim=1)
        return self.ids.flatten()


def _forget_peak() -> None:
    """Let the peak of this process's memory start from what it has now, where the system can."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def _peak_memory() -> float | None:
    """Return the peak of this process's memory in MiB, or None where the system does not tell."""
    file = Path("/proc/self/status")
    if not file.exists():
        return None
    line = next(line for line in file.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
