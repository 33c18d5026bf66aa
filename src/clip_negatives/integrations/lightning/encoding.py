"""The features of the training data by the module that is being trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Subset

Encode = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""``encode(module, batch) -> (image features, text features)``, each of shape (B, D), of a batch of the training loader."""


@torch.no_grad()
def encode_share(trainer: Trainer, module: LightningModule, loader: DataLoader[Any], encode: Encode) -> tuple[Tensor, Tensor]:
    """Return this rank's image and text features, of samples rank, rank + world_size, ..., unit norm, float32, shape (n, D).

    Args:
        trainer: moves the batches and sets the precision.
        module: put into evaluation mode for the time; each of its parts gets its own mode back.
        loader: its samples, collation and workers are used, not its order.
        encode: what the module makes of a batch.
    """
    data: Any = loader.dataset
    share = Subset(data, range(trainer.global_rank, len(data), trainer.world_size))
    batches: Any = loader.batch_sampler
    in_order: DataLoader[Any] = DataLoader(
        share,
        batch_size=loader.batch_size or int(batches.batch_size),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),  # else the loader draws its seed from the global generator and training would change
    )
    modes = {part: part.training for part in module.modules()}
    module.eval()
    parts = []
    for batch in in_order:
        with trainer.precision_plugin.forward_context():
            features = encode(module, trainer.strategy.batch_to_device(batch))
        parts.append([F.normalize(side.float(), dim=1) for side in features])
    for part, mode in modes.items():
        part.training = mode
    image, text = (torch.cat(side) for side in zip(*parts, strict=True))
    return image, text
