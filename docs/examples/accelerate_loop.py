"""Train a small model on a part of the catalogue, with a loop of accelerate. A stopped run goes on within its epoch."""

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clip_negatives import Columns, attach, catalogue
from clip_negatives.dataset import open_table
from clip_negatives.integrations.accelerate import AcceleratedLoader
from clip_negatives.integrations.open_clip.tiny import tiny_model
from clip_negatives.pipelines.prepare import prepare

work = Path(tempfile.mkdtemp())
pairs = open_table(catalogue.export(work / "catalogue", split="test", format="csv") / "test.csv", Columns(group="subgroup"))
prepare(pairs, work / "clusters")


class Listings(Dataset):
    def __init__(self, transform, tokenizer):
        self.transform, self.tokenizer = transform, tokenizer

    def __len__(self):
        return len(pairs)

    def __getitem__(self, row):
        return self.transform(Image.open(pairs.image_paths[row]).convert("RGB")), self.tokenizer(pairs.texts[row])[0]


accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model, transform, tokenizer = tiny_model(seed=0)
native = DataLoader(Listings(transform, tokenizer), batch_size=64, shuffle=True, drop_last=True)
attached, loss = attach(native, work / "clusters", keys=pairs.texts, epochs=2)
optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=1e-3)
model, optimizer = accelerator.prepare(model, optimizer)
loader = AcceleratedLoader(accelerator, attached, loss)
if (work / "last").exists():  # a stopped run goes on
    accelerator.load_state(work / "last")

losses = []
for epoch in range(loader.epoch, 2):
    loader.set_epoch(epoch)
    for (images, texts), samples in loader:
        with accelerator.accumulate(model):
            value = loss(**model(images, texts), samples=samples)
            accelerator.backward(value)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(value.item())
        if accelerator.sync_gradients and len(losses) % 10 == 0:
            accelerator.save_state(work / "last")
