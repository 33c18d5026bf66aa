"""Re-clustering of open_clip's training data with the model being trained."""

from __future__ import annotations

import logging
from copy import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from open_clip_train.precision import get_autocast
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.errors import ArtifactError
from clip_negatives.integrations.open_clip.checkpoints import resumed_run
from clip_negatives.integrations.open_clip.train_options import TrainOptions
from clip_negatives.interfaces import Clusters
from clip_negatives.printing import log
from clip_negatives.storage.clusters_folder import ClustersFolder, read_clusters, write_clusters
from clip_negatives.storage.manifest import OWN_ENTRIES
from clip_negatives.training.reclustering import encode_share, recluster_shares
from clip_negatives.training.same_data import check_columns


def recluster(
    model: Any, dataset: Any, preprocess: Any, args: Any, options: TrainOptions, epoch: int, previous: Clusters | None
) -> Clusters:
    """Encode all training data with `model`, cluster, and store the clusters beside open_clip's checkpoints.

    Every rank encodes its share; rank 0 clusters. The new clusters keep the text ids and group ids of `previous`.
    """
    log(f"re-clustering before epoch {epoch} with the model being trained", logging.INFO)
    keys, texts = [str(row) for row in range(len(dataset))], _texts(dataset)
    features = _features(model, dataset, preprocess, args)
    folder = _folder(Path(args.logs) / args.name, epoch)
    clustering: dict[str, Any] = {**options.recipe.clusterers, "seed": args.seed, "epoch": epoch}
    return recluster_shares(*features, pa.table({"key": keys, "text": texts}), folder, previous, **clustering)


def stored_folder(args: Any, epoch: int, every: int, dataset: Any) -> ClustersFolder | None:
    """Return the folder of the last re-clustering of a run that resumes at `epoch`, or None if there was none.

    A run that resumes under a new name gets a copy, so that it can be resumed too.

    Raises:
        ArtifactError: the folder is missing or damaged, or its texts differ from those of `dataset`.
    """
    last = (epoch - 1) // every * every
    if last < 1:
        return None
    path = _folder(resumed_run(args.resume), last)
    if not path.exists():
        raise ArtifactError(
            f"The run cannot resume at epoch {epoch}: the clusters of its re-clustering before epoch {last} are missing "
            f"({path}). Resume from the run's own checkpoints, or without {argument('refresh_every')}."
        )
    folder = read_clusters(path)
    check_columns(path, {"text": _texts(dataset)}, folder.samples)
    own = _folder(Path(args.logs) / args.name, last)
    if args.rank == 0 and not own.exists():
        about = {name: value for name, value in folder.manifest.items() if name not in OWN_ENTRIES}
        write_clusters(own, folder.clusters, folder.samples, about)
    return folder


def _texts(dataset: Any) -> list[str]:
    return [str(caption) for caption in dataset.captions]


def _folder(run: Path, epoch: int) -> Path:
    return run / "clip_negatives" / f"clusters-epoch-{epoch}"


def _features(model: Any, dataset: Any, preprocess: Any, args: Any) -> tuple[Tensor, Tensor]:
    """Return the features of this rank's share of the samples, without augmentation."""
    unaugmented = copy(dataset)
    unaugmented.transforms = preprocess
    dtype = next(model.parameters()).dtype
    autocast = get_autocast(args.precision, device_type=torch.device(args.device).type)

    def features(batch: Any) -> tuple[Tensor, Tensor]:
        images, texts = batch
        with autocast():
            image = model.encode_image(images.to(args.device, dtype), normalize=True)
            text = model.encode_text(texts.to(args.device), normalize=True)
        return image.float(), text.float()

    share = {"rank": args.rank, "world_size": args.world_size, "batch_size": args.batch_size, "num_workers": args.workers}
    return encode_share(model, unaugmented, features, **share)
