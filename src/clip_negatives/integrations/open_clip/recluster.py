"""Re-cluster the training data with the model that is being trained."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from open_clip_train.precision import get_autocast
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from clip_negatives.artifacts import read_clusters
from clip_negatives.errors import ArtifactError
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.integrations.reclustering import recluster_shares
from clip_negatives.interfaces import Clusters


def recluster(model: Any, dataset: Any, preprocess: Any, args: Any, options: TrainOptions, epoch: int) -> Clusters:
    """Encode all training data with `model`, cluster, and store the clusters beside open_clip's checkpoints.

    Every rank encodes its share; rank 0 clusters. A run that is resumed finds the stored clusters (`stored_clusters`).
    """
    logging.info(f"clip-negatives: re-clustering before epoch {epoch} with the model being trained")
    keys = [str(row) for row in range(len(dataset))]
    return recluster_shares(
        *_encode(model, dataset, preprocess, args),
        pa.table({"key": keys, "text": [str(caption) for caption in dataset.captions]}),
        _folder(Path(args.logs) / args.name, epoch),
        clusterer=options.clusterer,
        text_clusterer=options.text_clusterer,
        seed=args.seed,
        epoch=epoch,
    )


def stored_clusters(args: Any, epoch: int, every: int) -> Clusters | None:
    """Return the clusters that a run resumed at `epoch` had been using, or None where it had not re-clustered yet.

    Raises:
        ArtifactError: it had, and the folder is not beside the checkpoint.
    """
    last = (epoch - 1) // every * every
    if last == 0:
        return None
    folder = _folder(Path(args.resume).parent.parent, last)
    if not folder.exists():
        raise ArtifactError(
            f"Expected the clusters that were made before epoch {last} at {folder}, to resume at epoch {epoch}, got none. "
            "Resume from the run's own checkpoints, or without --refresh-every."
        )
    return read_clusters(folder).clusters


def _folder(run: Path, epoch: int) -> Path:
    return run / "clip_negatives" / f"clusters-epoch-{epoch}"


@torch.no_grad()
def _encode(model: Any, dataset: Any, preprocess: Any, args: Any) -> tuple[Tensor, Tensor]:
    """Return this rank's image and text features: of samples rank, rank + world_size, ..."""
    plain = copy.copy(dataset)
    plain.transforms = preprocess
    loader = DataLoader(
        Subset(plain, range(args.rank, len(dataset), args.world_size)),
        batch_size=args.batch_size,
        num_workers=args.workers,
        generator=torch.Generator(),  # else the loader draws its seed from the global generator and training would change
    )
    inner = getattr(model, "_orig_mod", model)
    inner = getattr(inner, "module", inner)
    was_training, autocast = inner.training, get_autocast(args.precision, device_type=torch.device(args.device).type)
    dtype = next(inner.parameters()).dtype
    inner.eval()
    parts = []
    for images, texts in loader:
        with autocast():
            image = inner.encode_image(images.to(args.device, dtype), normalize=True)
            text = inner.encode_text(texts.to(args.device), normalize=True)
        parts.append((image.float(), text.float()))
    inner.train(was_training)
    return torch.cat([image for image, _ in parts]), torch.cat([text for _, text in parts])
