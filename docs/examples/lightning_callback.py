"""Train a small model of two towers on a part of the catalogue with Lightning; re-cluster with it before the second epoch."""

import tempfile
import zlib
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from clip_negatives import Columns, catalogue
from clip_negatives.dataset import open_table
from clip_negatives.integrations.lightning import NegativesCallback
from clip_negatives.pipelines.prepare import prepare

work = Path(tempfile.mkdtemp())
pairs = open_table(catalogue.export(work / "catalogue", split="test", format="csv") / "test.csv", Columns(group="subgroup"))
prepare(pairs, work / "clusters")


class Listings(Dataset):
    def __len__(self):
        return len(pairs)

    def __getitem__(self, row):
        words = [1 + zlib.crc32(word.encode()) % 2000 for word in pairs.texts[row].lower().split()][:16]
        picture = pil_to_tensor(Image.open(pairs.image_paths[row]).convert("RGB")) / 255
        return picture, F.pad(torch.tensor(words), (0, 16 - len(words)))


class Towers(lightning.LightningModule):
    def __init__(self, negatives):
        super().__init__()
        self.negatives = negatives
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 128), nn.ReLU(), nn.Linear(128, 64))
        self.text = nn.EmbeddingBag(2001, 64, padding_idx=0)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))

    def encode(self, batch):
        images, texts = batch
        return F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)

    def train_dataloader(self):
        return self.negatives.attach(DataLoader(Listings(), batch_size=64))

    def training_step(self, batch, batch_idx):
        batch, samples = batch
        loss = self.negatives.loss(*self.encode(batch), self.logit_scale.exp(), samples=samples)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


negatives = NegativesCallback(work / "clusters", refresh_every=1, encode=Towers.encode)
trainer = lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    log_every_n_steps=5,
    default_root_dir=work,
    logger=CSVLogger(work),  # TensorBoardLogger, WandbLogger, ...
    callbacks=[negatives],
    enable_progress_bar=False,
)
trainer.fit(Towers(negatives))
