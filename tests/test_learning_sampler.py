"""Samplers that learn from the steps of a training, in a loop of one's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from clip_negatives import AnchorLoss, Anchors, LearningSampler, LossTerms, SamplingContext, Step, attach
from clip_negatives.anchors import info_nce
from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.errors import InputError, PluginError
from clip_negatives.integrations import loop
from clip_negatives.learning_sampler import carry_over, observer_of
from clip_negatives.losses.module import NegativesClipLoss
from tests.integrations.clustered import BATCH as SIZE
from tests.integrations.clustered import Pictures, write_folder

N, BATCH, DIM = 48, 8, 6


class ByLoss(LearningSampler):
    """Batches of samples with similar losses."""

    def __init__(self, context: SamplingContext) -> None:
        super().__init__(context, self.plan_epoch, loss=torch.zeros(context.n_samples))
        self.seen: list[tuple[Step, Tensor]] = []

    def observe(self, step: Step, losses: Tensor) -> None:
        self.seen.append((step, losses))
        self.new["loss"][step.samples.candidates] = losses

    def plan_epoch(self, generator: torch.Generator) -> Tensor:
        used = torch.randperm(self.context.n_samples, generator=generator)
        return used[self.memory["loss"][used].argsort(stable=True)].view(len(self), self.step_size)


class Plain(AnchorLoss):
    def forward(self, anchors: Anchors) -> Tensor:
        return info_nce(anchors)


class Training:
    """A loop with two linear towers, that can stop after any step."""

    def __init__(self, workers: int = 0, terms: Any = None) -> None:
        generator = torch.Generator().manual_seed(0)
        images, texts = torch.randn(N, 4, generator=generator), torch.randn(N, 5, generator=generator)
        self.data = TensorDataset(images, texts, torch.arange(N))
        native = DataLoader(self.data, BATCH, shuffle=True, drop_last=True, num_workers=workers)
        self.sampler = ByLoss(SamplingContext(N, BATCH, seed=1))
        self.loader = IndexedLoader(native, self.sampler)
        self.loss = NegativesClipLoss(terms=terms)
        self.loss.observer = self.sampler.observe
        torch.manual_seed(0)
        self.towers = nn.ModuleList([nn.Linear(4, DIM), nn.Linear(5, DIM)])
        self.optimizer = torch.optim.AdamW(self.towers.parameters(), lr=0.05)
        self.batches: list[list[int]] = []

    def run(self, epochs: range, stop: int | None = None) -> dict[str, Any] | None:
        """Train, and return the state after `stop` batches of the last epoch."""
        for epoch in epochs:
            self.loader.set_epoch(epoch)
            for position, ((images, texts, ids), samples) in enumerate(self.loader, start=1):
                assert samples.ids.tolist() == ids.tolist()
                self.batches.append(ids.tolist())
                x, y = (F.normalize(tower(part), dim=1) for tower, part in zip(self.towers, (images, texts), strict=True))
                self.optimizer.zero_grad()
                self.loss(x, y, torch.tensor(10.0), samples=samples).backward()
                self.optimizer.step()
                if epoch == epochs[-1] and position == stop:
                    parts = {"loader": self.loader, "towers": self.towers, "optimizer": self.optimizer}
                    return copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
        return None

    def load(self, state: dict[str, Any]) -> None:
        for name, part in {"loader": self.loader, "towers": self.towers, "optimizer": self.optimizer}.items():
            part.load_state_dict(state[name])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, N // BATCH])
def test_a_stopped_epoch_goes_on_exactly(workers: int, stop: int) -> None:
    whole, first, second = Training(workers), Training(workers), Training(workers)
    whole.run(range(4))
    state = first.run(range(2), stop)
    second.load(state)
    second.run(range(1, 4))
    assert first.batches + second.batches == whole.batches
    for mine, theirs in zip(second.towers.parameters(), whole.towers.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("terms", [None, Plain(), LossTerms(hardness=0.5)], ids=["plain", "anchor loss", "terms"])
def test_losses_are_the_means_of_both_directions(terms: Any) -> None:
    training = Training(terms=terms)
    training.run(range(1))
    assert len(training.sampler.seen) == N // BATCH
    for step, losses in training.sampler.seen:
        assert losses.shape == (BATCH,)
        assert not losses.requires_grad
        assert not step.features.image.requires_grad
        if not isinstance(terms, LossTerms):
            logits = 10 * step.features.image @ step.features.text.T
            target = torch.arange(BATCH)
            each = [F.cross_entropy(side, target, reduction="none") for side in (logits, logits.T)]
            torch.testing.assert_close(losses, (each[0] + each[1]) / 2)


def test_an_observer_does_not_change_the_loss() -> None:
    x, y = (F.normalize(torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(s)), dim=1) for s in (0, 1))
    training = Training()
    (_, samples) = next(iter(training.loader))
    for terms in (None, LossTerms(hardness=0.5), LossTerms(positive_weight=0.0)):
        observed, plain = NegativesClipLoss(terms=terms), NegativesClipLoss(terms=terms)
        observed.observer = training.sampler.observe
        torch.testing.assert_close(observed(x, y, 10.0, samples=samples), plain(x, y, 10.0))


def test_batches_are_observed_once() -> None:
    training = Training()
    x = F.normalize(torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()
    _, samples = next(iter(training.loader))
    for again in (False, True, True):
        training.loss(x, x, torch.tensor(10.0), samples=samples, again=again)
    training.loss.eval()
    training.loss(x, x, torch.tensor(10.0))
    assert len(training.sampler.seen) == 1
    with pytest.raises(InputError, match="needs the sample ids of the batch"):
        training.loss.train()(x, x, torch.tensor(10.0))


def test_memory_of_another_sampler_is_refused() -> None:
    training = Training()
    with pytest.raises(InputError, match="memory is not of this ByLoss"):
        training.sampler.load_learned({"loss": torch.zeros(3)})
    state = training.loader.state_dict()
    with pytest.raises(InputError, match="state has no memory of the sampler"):
        training.loader.load_state_dict({name: value for name, value in state.items() if name != "learned"})


def test_new_clusters_keep_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    old, new = (ByLoss(SamplingContext(N, BATCH)) for _ in range(2))
    old.new["loss"] += 1
    carry_over(old, new)
    new.set_epoch(1)
    assert float(new.memory["loss"].sum()) == N
    with caplog.at_level("WARNING"):
        carry_over(old, ByLoss(SamplingContext(N + 8, BATCH)))
    assert "the sampler ByLoss learns anew" in caplog.text


def test_attach_lets_the_sampler_observe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "clusters")
    made = loop.registry.create
    by_loss = lambda kind, spec, *context: ByLoss(*context) if spec == "by_loss" else made(kind, spec, *context)  # noqa: E731
    monkeypatch.setattr(loop.registry, "create", by_loss)
    monkeypatch.setattr(loop, "resolved", lambda kind, spec: spec)
    native = DataLoader(Pictures(mapping=False), SIZE, shuffle=True)
    loader, loss = attach(native, tmp_path / "clusters", sampler="by_loss", epochs=2)
    assert loader.negatives.context.epochs == 2
    batch, samples = next(iter(loader))
    x = F.normalize(torch.randn(SIZE, DIM), dim=1)
    loss(x, x, torch.tensor(10.0), samples=samples)
    (step, losses), *rest = loader.negatives.seen
    assert not rest
    assert step.position.total_steps == 2 * len(loader)
    assert losses.shape == (SIZE,)
    assert batch is not None


def test_faults_of_a_memory_are_named() -> None:
    with pytest.raises(InputError, match="memory 'loss' of LearningSampler must be a tensor, got float"):
        LearningSampler(SamplingContext(N, BATCH), lambda generator: torch.zeros(1), loss=0.5)
    with pytest.raises(PluginError, match=r"LearningSampler has no observe\(step, losses\)"):
        LearningSampler(SamplingContext(N, BATCH), lambda generator: torch.zeros(1)).observe(None, None)
    learner = ByLoss(SamplingContext(N, BATCH))
    learner.new["loss"] = torch.zeros(3)
    with pytest.raises(PluginError, match="observe of the sampler ByLoss changes the names, shapes or dtypes"):
        learner.set_epoch(1)


def test_a_state_of_other_options_is_refused() -> None:
    training, other = Training(), Training()
    training.loader.spec, other.loader.spec = "by_loss:by=image", "by_loss:by=text"
    with pytest.raises(InputError, match=r"not of this loader .by_loss:by=text .* but of by_loss:by=image"):
        other.loader.load_state_dict(training.loader.state_dict())
    losses = [NegativesClipLoss() for _ in range(2)]
    losses[0].weighting, losses[1].weighting = "annealed:beta=1", "annealed:beta=2"
    with pytest.raises(InputError, match="of other clusters or of another weighting"):
        losses[1].load_state_dict(losses[0].state_dict())


class WithoutLosses(ByLoss):
    def observe(self, step: Step) -> None:
        pass


class Misspelt(ByLoss):
    def observe(self, step: Step, losses: Tensor) -> None:
        self.new["los"][0] = 1


class InPlace(ByLoss):
    def observe(self, step: Step, losses: Tensor) -> None:
        self.memory["loss"][step.samples.candidates] = losses


def test_observe_with_other_parameters_is_an_error() -> None:
    with pytest.raises(PluginError, match=r"WithoutLosses must take \(step, losses\), not \(step: "):
        observer_of(WithoutLosses(SamplingContext(N, BATCH)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Misspelt, r"observe of the sampler Misspelt stopped with KeyError: 'los' \(.*test_learning_sampler.py, line \d+\)"),
        (InPlace, "InPlace changes self.memory. Write to self.new"),
    ],
)
def test_faults_of_observe_name_the_sampler(kind: type[ByLoss], words: str) -> None:
    training = Training()
    training.loss.observer = observer_of(kind(SamplingContext(N, BATCH, seed=1)))
    with pytest.raises(PluginError, match=words):
        training.run(range(1))
