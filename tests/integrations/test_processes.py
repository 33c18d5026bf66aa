"""Two processes of each trainer against one that has the whole batch: the same samples, the same gradients, the same weights.

Both processes are started once for all: they write what they found into a file each.
"""

from __future__ import annotations

import os
from pathlib import Path

import lightning
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import distributed as dist
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from clip_negatives import attach
from clip_negatives.integrations.lightning import NegativesCallback
from clip_negatives.integrations.sentence_transformers import NegativesBatches, with_index
from tests import ranks
from tests.integrations.clustered import BATCH, N, Pictures, rows_of, write_folder
from tests.integrations.test_lightning import Towers
from tests.integrations.test_sentence_transformers import Watched as WatchedLoss
from tests.integrations.test_sentence_transformers import data, words_model
from tests.integrations.test_transformers import Watched, collate, tiny_clip, tiny_siglip

WORLD = 2
STEPS = N // (WORLD * BATCH)
PLAIN = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "num_train_epochs": 2}
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 3}
TRAINERS = ("transformers", "resumed", "siglip", "sentence_transformers", "lightning", "loop", "in_batch")


def _transformers(folder: Path, name: str, batch: int, resume: str | None = None, model=tiny_clip, **ours):
    saved = {"save_strategy": "steps", "save_steps": STEPS + 1}
    run = TrainingArguments(str(folder / name), per_device_train_batch_size=batch, **PLAIN, **QUIET, **saved)
    trainer = Watched(model(), run, train_dataset=Pictures(), data_collator=collate, clusters=folder / "clusters", **ours)
    trainer.train(resume)
    return trainer.seen, trainer.model.state_dict()


def _resumed(folder: Path, name: str, batch: int):
    return _transformers(folder, name, batch, str(folder / name / f"checkpoint-{STEPS + 1}"))


def _siglip(folder: Path, name: str, batch: int):
    return _transformers(folder, f"{name}-siglip", batch, model=tiny_siglip, weighting="siglip:of=weighted_infonce")


def _in_batch(folder: Path, name: str, batch: int):
    return _transformers(folder, f"{name}-in-batch", batch, sampler="in_batch", weighting="uniform")


def _sentence_transformers(folder: Path, name: str, batch: int):
    model: SentenceTransformer = words_model()
    batches = NegativesBatches(folder / "clusters", gather_across_devices=True)
    how = {**PLAIN, **QUIET, "per_device_train_batch_size": batch, "batch_sampler": batches, "save_strategy": "no"}
    loss = WatchedLoss(model, gather_across_devices=True, clusters=folder / "clusters")
    run = SentenceTransformerTrainingArguments(str(folder / f"{name}-st"), **how)
    SentenceTransformerTrainer(model, run, with_index(data(), folder / "clusters"), loss=loss).train()
    return loss.seen, model.state_dict()


def _lightning(folder: Path, name: str, batch: int):
    negatives = NegativesCallback(
        folder / "clusters", seed=3, refresh_every=1, encode=Towers.encode, clusterer="kmeans:n_clusters=3"
    )
    module = Towers(negatives, batch=batch)
    how = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    devices = 1 if batch > BATCH else WORLD
    strategy = "auto" if devices == 1 else "ddp"
    how |= {"accelerator": "cpu", "devices": devices, "strategy": strategy, "default_root_dir": folder / f"{name}-lightning"}
    lightning.Trainer(max_epochs=2, callbacks=[negatives], **how).fit(module)
    return module.seen, module.state_dict()


def _loop(folder: Path, name: str, batch: int):
    """A loop of one's own with a weighting that remembers each sample."""
    options = {"weighting": "sogclr", "local_loss": True, "gather_with_grad": True, "seed": 3}
    loader, loss = attach(DataLoader(Pictures(mapping=False), batch_size=batch), folder / "clusters", **options)
    torch.manual_seed(0)
    weights, seen = [torch.randn(shape).requires_grad_() for shape in ((8, 192), (20, 8))], []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        for (images, texts), samples in loader:
            assert torch.equal(rows_of(images), samples.ids)
            seen.append(samples.ids.tolist())
            sides = F.linear(images.flatten(1) / N, weights[0]), F.embedding_bag(texts, weights[1])
            value = loss(*(F.normalize(side, dim=1) for side in sides), torch.tensor(5.0), samples=samples)
            for weight, slope in zip(weights, torch.autograd.grad(value, weights), strict=True):
                if batch == BATCH:
                    dist.all_reduce(slope)
                weight.data -= 0.1 * slope / (WORLD if batch == BATCH else 1)
    return seen, {"image": weights[0], "text": weights[1]} | dict(loss.named_buffers())


def _all(folder: Path, name: str, batch: int):
    made = (_transformers, _resumed, _siglip, _sentence_transformers, _lightning, _loop, _in_batch)
    return {trainer: make(folder, name, batch) for trainer, make in zip(TRAINERS, made, strict=True)}


def _process(folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu", "PL_TORCH_DISTRIBUTED_BACKEND": "gloo"}
    torch.save(_all(folder, "two", BATCH), folder / f"{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("processes")
    write_folder(folder / "clusters")
    ranks.run(WORLD, _process, folder, log=folder / "log")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one = _all(folder, "one", WORLD * BATCH)
    torch.set_num_threads(before)
    return one, [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_in_batch_deals_each_sample_once(found):
    _, (first, second) = found
    assert len(first["in_batch"][0]) == 2 * STEPS
    for epoch in (slice(STEPS), slice(STEPS, 2 * STEPS)):
        seen = torch.tensor([first["in_batch"][0][epoch], second["in_batch"][0][epoch]])
        assert sorted(seen.flatten().tolist()) == list(range(N))
    for name, weight in first["in_batch"][1].items():
        torch.testing.assert_close(second["in_batch"][1][name], weight)


@pytest.mark.parametrize("trainer", TRAINERS[:-1])
@pytest.mark.filterwarnings("ignore")
def test_two_processes_see_and_learn_what_one_with_the_whole_batch_does(found, trainer):
    one, (first, second) = found
    seen, weights = one[trainer]
    assert [a + b for a, b in zip(first[trainer][0], second[trainer][0], strict=True)] == seen
    assert len(seen) == (STEPS - 1 if trainer == "resumed" else 2 * STEPS)
    for name, weight in weights.items():
        for other in (first, second):
            torch.testing.assert_close(other[trainer][1][name], weight, rtol=1e-3, atol=1e-5)
