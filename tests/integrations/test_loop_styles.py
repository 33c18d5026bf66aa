"""Three hundred steps in each usual style of loop: the loss gets the samples whose features it gets.

Each image shows its own row (`clustered.picture`), and so does each text of sentence-transformers. The towers note the rows
that they encode, and the loss compares them with the samples that it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clip_negatives import BatchSamples, NegativesClipLoss, attach
from clip_negatives.integrations.lightning import NegativesCallback
from clip_negatives.integrations.sentence_transformers import NegativesBatches, NegativesRankingLoss, with_index
from clip_negatives.integrations.transformers import NegativesTrainer
from tests.integrations.clustered import BATCH, N, Pictures, rows_of, write_folder
from tests.integrations.test_sentence_transformers import data, words_model
from tests.integrations.test_transformers import arguments, collate, tiny_clip

STEPS = 300
EPOCHS = -(-STEPS // (N // BATCH))
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


class Watch:
    """The rows that were encoded since the last call of the loss, and how often the loss was given other samples."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoded: list[Tensor] = []
        self.steps = self.wrong = 0
        forward = NegativesClipLoss.forward

        def watched(loss: NegativesClipLoss, *features: Any, samples: BatchSamples | None = None, **rest: Any) -> Any:
            if torch.is_grad_enabled():
                self.steps += 1
                self.wrong += samples is None or samples.ids.tolist() != torch.cat(self.encoded).tolist()
            self.encoded.clear()
            return forward(loss, *features, samples=samples, **rest)

        monkeypatch.setattr(NegativesClipLoss, "forward", watched)


class Towers(nn.Module):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch, self.image, self.text = watch, nn.Linear(3 * 64, 8), nn.EmbeddingBag(20, 8)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        self.watch.encoded.append(rows_of(images))
        return F.normalize(self.image(images.flatten(1) / N), dim=1), F.normalize(self.text(texts), dim=1)


def ahead(batches: Iterable[Any], n: int = 3) -> Iterator[Any]:
    """Yield batches with n more already fetched, as prefetchers to a GPU do."""
    waiting: deque[Any] = deque()
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > n:
            yield waiting.popleft()
    yield from waiting


def plain(folder: Path, watch: Watch) -> None:
    """Workers, a prefetcher, and the features of two batches in one loss."""
    native = DataLoader(Pictures(mapping=False), batch_size=BATCH, num_workers=2, persistent_workers=True, prefetch_factor=3)
    loader, loss = attach(native, folder)
    model = Towers(watch)
    for epoch in range(2 * EPOCHS):
        loader.set_epoch(epoch)
        batches = list(ahead(loader))
        for pair in zip(batches[::2], batches[1::2], strict=True):
            sides = [torch.cat(side) for side in zip(*(model(*batch) for batch, _ in pair), strict=True)]
            loss(*sides, 5.0, samples=BatchSamples.concatenate([samples for _, samples in pair])).backward()


def accelerated(folder: Path, watch: Watch) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    loader, loss = attach(DataLoader(Pictures(mapping=False), batch_size=BATCH, num_workers=2, persistent_workers=True), folder)
    model = Towers(watch)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for (images, texts), samples in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss(*model(images, texts), 5.0, samples=samples))
                optimizer.step()
                optimizer.zero_grad()


def trainer(folder: Path, watch: Watch) -> None:
    model = tiny_clip()
    model.register_forward_pre_hook(
        lambda _, given, named: watch.encoded.append(rows_of(named["pixel_values"])), with_kwargs=True
    )
    run = arguments(folder.parent / "run", num_train_epochs=EPOCHS, gradient_accumulation_steps=2, logging_steps=50)
    NegativesTrainer(model, run, train_dataset=Pictures(), data_collator=collate, clusters=folder).train()


def sentence_transformers(folder: Path, watch: Watch) -> None:
    model = words_model()
    model.register_forward_pre_hook(lambda _, given: watch.encoded.append((given[0]["input_ids"] - 1) % N))
    run = SentenceTransformerTrainingArguments(
        str(folder.parent / "run"), per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True, batch_sampler=NegativesBatches(folder),
    )  # fmt: skip
    loss = NegativesRankingLoss(model, clusters=folder)
    weighted = loss.weighted.forward
    loss.weighted.forward = lambda *given, **named: (watch.encoded.pop(), weighted(*given, **named))[1]  # both columns
    SentenceTransformerTrainer(model, run, with_index(data(), folder).shuffle(seed=3), loss=loss).train()


class Module(lightning.LightningModule):
    def __init__(self, negatives: NegativesCallback, watch: Watch) -> None:
        super().__init__()
        self.negatives, self.towers = negatives, Towers(watch)

    def train_dataloader(self) -> Any:
        return self.negatives.attach(DataLoader(Pictures(mapping=False), batch_size=BATCH))

    def val_dataloader(self) -> Any:
        return DataLoader(Pictures(11, mapping=False), batch_size=11)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.negatives.loss(*self.towers(*batch[0]), 5.0, samples=batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.negatives.loss(*self.towers(*batch), 5.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lightnings(folder: Path, watch: Watch) -> None:
    negatives = NegativesCallback(folder)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    fit = lightning.Trainer(accelerator="cpu", max_epochs=EPOCHS, callbacks=[negatives], check_val_every_n_epoch=15, **quiet)
    fit.fit(Module(negatives, watch))


@pytest.mark.parametrize("style", [plain, accelerated, trainer, sentence_transformers, lightnings])
def test_no_step_gets_the_samples_of_another(style: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = write_folder(tmp_path / "clusters")
    watch = Watch(monkeypatch)
    style(folder, watch)
    assert (watch.steps >= STEPS, watch.wrong) == (True, 0)
